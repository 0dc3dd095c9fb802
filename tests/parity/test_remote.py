# SPDX-License-Identifier: MIT OR Apache-2.0
"""Families with code of their own, against the LLaMA that each of them is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.parity import hf
from tests.parity.cases.remote import CASES, Published
from tests.parity.test_parity import LENGTHS, compare, prompt, seen
from torch_mi.model import MIModel

KEPT = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "hidden_act",
)  # fmt: skip
"""Keys that are spelt alike."""


def publish(case: Published, folder: Path) -> object:
    """Write a LLaMA as a checkpoint of another family."""
    llama = hf.build(case.llama)
    said = llama.config.to_dict()
    config = {key: said[key] for key in KEPT}
    if case.family == "internlm2":
        config["num_key_value_heads"] = said["num_key_value_heads"]
    tensors = case.names(llama.state_dict(), llama.config)
    if said["tie_word_embeddings"]:
        tensors.pop("output.weight")
    folder.mkdir(exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    whole = {"model_type": case.family, **config, **case.config}
    (folder / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    return llama


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_published_checkpoint_computes_what_llama_does(case: Published, tmp_path: Path) -> None:
    llama = publish(case, tmp_path)
    ours = MIModel.from_pretrained(tmp_path)
    assert ours.origin.family == case.family
    for batch, pos in LENGTHS:
        tokens = prompt(batch, pos)
        compare(seen(ours, tokens), hf.run(llama, tokens))
    tokens, real = prompt(2, 8), torch.ones(2, 8, dtype=torch.bool)
    real[1, :3] = False
    counted = (real.long().cumsum(1) - 1).masked_fill(~real, 1)
    wanted = hf.run(llama, tokens, attention_mask=real.long(), position_ids=counted)
    compare(seen(ours, tokens, attention_mask=real), wanted, real)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("use_cache", [None, False])
def test_greedy_text_is_that_of_llama(
    case: Published, use_cache: bool | None, tmp_path: Path
) -> None:
    llama = publish(case, tmp_path)
    tokens = prompt(1, 6)
    wanted = llama.generate(  # pyright: ignore[reportAttributeAccessIssue] - transformers is untyped
        tokens, max_new_tokens=12, do_sample=False, pad_token_id=0, use_cache=False
    )
    got = MIModel.from_pretrained(tmp_path).generate(tokens, max_new_tokens=12, use_cache=use_cache)
    assert got.tokens == wanted[0, 6:].tolist()
