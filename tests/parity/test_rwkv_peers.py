# SPDX-License-Identifier: MIT OR Apache-2.0
"""RWKV by other people's code: transformers' RWKV-4, and the authors' `rwkv` if it is there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import torch_mi as mi
from tests.parity.rwkv import Plain, Sizes, checkpoint
from tests.parity.test_rwkv import near, written
from torch_mi.hooks.point import HookPoint as P

RUN = """
import sys, torch
from safetensors.torch import save_file
from rwkv.model import RWKV
path, out, *tokens = sys.argv[1:]
with torch.no_grad():
    found, _ = RWKV(model=path, strategy="cpu fp32").forward(list(map(int, tokens)), None, True)
save_file({"logits": found.float().contiguous()}, out)
"""
"""What the authors' runtime makes of a text; each version needs a process of its own."""


@pytest.mark.parametrize("version", ["4", "5.1", "5.2", "6", "7"])
def test_the_authors_runtime(version: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("rwkv") is None:
        pytest.skip("the package `rwkv` is not installed")
    heads, size = (128, 1) if version == "4" else (2, 64)
    sizes = Sizes(version, 128, heads, size, layers=3, inner=96, vocab=40, ranks=(8, 12, 6, 10))
    tensors = checkpoint(sizes)
    dice = torch.Generator().manual_seed(1)
    tokens = torch.randint(40, (70,), generator=dice).tolist()
    path, out = written(tensors, tmp_path / "model.pth"), tmp_path / "out.safetensors"
    env = {**os.environ, "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    env["RWKV_V7_ON"] = str(int(version == "7"))
    words = [sys.executable, "-c", RUN, str(path.with_suffix("")), str(out), *map(str, tokens)]
    subprocess.run(words, check=True, env=env, capture_output=True)
    theirs = load_file(out)["logits"]
    ours = mi.MIModel.from_pretrained(path).forward(torch.tensor([tokens])).output[0]
    near(ours, theirs, 1e-4)
    near(Plain(tensors, sizes).run(tokens).logits, theirs, 1e-4)


def transformers_model(**changes: object) -> Any:
    from transformers import RwkvConfig, RwkvForCausalLM  # noqa: PLC0415 - transformers loads late

    config = RwkvConfig(
        vocab_size=13,
        hidden_size=12,
        attention_hidden_size=12,
        num_hidden_layers=3,
        intermediate_size=20,
        rescale_every=0,
        **changes,  # pyright: ignore[reportArgumentType] - keys of a config
    )
    model = RwkvForCausalLM(config).eval()
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=dice)
            value.copy_(torch.rand(value.shape, generator=dice) if "time_mix" in name else noise)
            value.mul_(value.shape[-1] ** -0.5 if value.ndim == 2 else 1.0)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_rwkv_4(tied: bool, tmp_path: Path) -> None:
    theirs = transformers_model(tie_word_embeddings=tied)
    tokens = torch.randint(13, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = theirs(tokens, output_hidden_states=True)
    theirs.save_pretrained(tmp_path)
    for ours in (mi.MIModel.from_hf(theirs), mi.MIModel.from_pretrained(tmp_path)):
        seen = ours.forward(tokens, mi.HookSpec().capture(P.ResidPost))
        near(seen.output, wanted.logits)
        for layer in range(3):
            near(seen[P.ResidPost(layer)], wanted.hidden_states[layer])


def test_transformers_rescales_its_layers(tmp_path: Path) -> None:
    """In eval it halves the stream every few layers; what it saves after a run is what it ran."""
    theirs = transformers_model()
    theirs.save_pretrained(tmp_path)
    theirs.config.rescale_every = 2
    tokens = torch.randint(13, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = theirs(tokens, output_hidden_states=True)
    seen = mi.MIModel.from_pretrained(tmp_path).forward(tokens, mi.HookSpec().capture(P.ResidPost))
    near(seen.output, wanted.logits, 1e-4)
    near(seen[P.ResidPost(0)], wanted.hidden_states[0])
    near(seen[P.ResidPost(1)], 2 * wanted.hidden_states[1])
