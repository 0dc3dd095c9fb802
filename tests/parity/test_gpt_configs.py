# SPDX-License-Identifier: MIT OR Apache-2.0
"""GPT-2's kin: published configs mean what is known of the models, and every tensor is placed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.parity import hf
from tests.parity.cases import gpt
from tests.parity.cases.case import Case
from tests.parity.gpt_published import BIASED, PHI2, PUBLISHED, UNBIASED, sizes, turns
from tests.parity.placing import placed, reference
from torch_mi.config.activation import Activation
from torch_mi.config.parts import (
    BlockLayout,
    Embedding,
    Head,
    Learned,
)
from torch_mi.config.transformer import TransformerConfig
from torch_mi.families import read_config

HERE = Path(__file__).resolve().parents[2]
CONFIGS = Path(os.environ.get("TORCH_MI_SHARED", HERE.parent / "shared")) / "data" / "configs"

Raw = dict[str, Any]

GENUINE: dict[str, Raw] = {
    "gpt2/gpt2.json": {
        **sizes(768, 12, 12, 3072, 50257, 1024),
        **BIASED,
        "embedding": Embedding(learned=Learned(1024)),
        "layout": BlockLayout.Pre,
        "activation": Activation.GeluTanh,
        "tie_word_embeddings": True,
    },
    "gpt2/gpt2_medium.json": {
        **sizes(1024, 24, 16, 4096, 50257, 1024),
        **BIASED,
        "embedding": Embedding(learned=Learned(1024)),
        "layout": BlockLayout.Pre,
        "activation": Activation.GeluTanh,
        "tie_word_embeddings": True,
    },
    "gpt_bigcode/gpt_bigcode.json": {
        **sizes(2048, 24, 16, 8192, 49280, 2048),
        **BIASED,
        "num_kv_heads": 1,
        "embedding": Embedding(learned=Learned(2048)),
        "layout": BlockLayout.Pre,
        "activation": Activation.GeluTanh,
        "tie_word_embeddings": True,
    },
    "gpt_neox/eleutherai__pythia-6.9b-deduped.json": {
        **sizes(4096, 32, 32, 16384, 50432, 2048),
        **BIASED,
        **turns(32, 32),
        "layout": BlockLayout.ParallelTwo,
        "activation": Activation.Gelu,
        "tie_word_embeddings": False,
    },
    "gpt_neox/redpajama_3b_v1.json": {
        **sizes(2560, 32, 32, 10240, 50432, 2048),
        **BIASED,
        **turns(32, 80),
        "layout": BlockLayout.Pre,
        "activation": Activation.Gelu,
        "tie_word_embeddings": False,
    },
    "gptj/gpt_j.json": {
        **sizes(4096, 28, 16, 16384, 50400, 2048),
        **turns(28, 64, interleaved=True),
        **UNBIASED,
        "mlp_bias": True,
        "head": Head(bias=True),
        "layout": BlockLayout.Parallel,
        "activation": Activation.GeluTanh,
        "tie_word_embeddings": False,
    },
    "falcon/tiiuae__falcon-7b.json": {
        **sizes(4544, 32, 71, 18176, 65024, 2048),
        **UNBIASED,
        **turns(32, 64),
        "num_kv_heads": 1,
        "layout": BlockLayout.Parallel,
        "activation": Activation.Gelu,
        "alibi": None,
        "tie_word_embeddings": True,
    },
    "phi-msft/phi-1_5.json": {
        **sizes(2048, 24, 32, 8192, 51200, 2048),
        **BIASED,
        **turns(24, 32),
        "head": Head(bias=True),
        "layout": BlockLayout.Parallel,
        "activation": Activation.GeluTanh,
        "tie_word_embeddings": False,
    },
    "phi-msft/phi-2.json": PHI2,
}
"""What the published configs in the shared folder mean, written by hand."""


def means(cfg: TransformerConfig, wanted: Raw) -> None:
    found = {name: getattr(cfg, name) for name in wanted}
    assert found == wanted


@pytest.mark.parametrize("name", GENUINE)
def test_published_configs_mean_what_is_known_of_the_models(name: str) -> None:
    if not (CONFIGS / name).is_file():
        pytest.skip(f"no published config here: {CONFIGS / name} is absent")
    raw = json.loads((CONFIGS / name).read_text(encoding="utf-8"))
    cfg = read_config(raw)[1]
    means(cfg, GENUINE[name])
    rewritten = CONFIGS / "transformers5" / name
    if raw["model_type"] in CONFIG_MAPPING:
        assert read_config(json.loads(rewritten.read_text(encoding="utf-8")))[1] == cfg


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_published_configs_mean_what_is_known_of_the_models(name: str) -> None:
    raw, wanted = PUBLISHED[name]
    family, cfg = read_config(raw)
    means(cfg, wanted)
    theirs = reference(raw)
    assert read_config(json.loads(theirs.to_json_string(use_diff=False)))[1] == cfg
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    assert placed(family, cfg, model)


@pytest.mark.parametrize("case", gpt.CASES, ids=str)
def test_every_number_of_a_checkpoint_has_one_place(case: Case) -> None:
    model = hf.build(case)
    family, cfg = read_config(model.config.to_dict())
    plan = placed(family, cfg, model)
    counted = {
        name: torch.arange(t.numel()).view(t.shape) for name, t in model.state_dict().items()
    }
    taken = dict[str, list[torch.Tensor]]()
    for p in plan.placements:
        part = p.take([counted[name] for name in p.theirs])
        assert tuple(part.shape) == p.shape
        taken.setdefault(p.theirs[0], []).append(part.flatten())
    for name, parts in taken.items():
        assert torch.equal(torch.cat(parts).sort().values, counted[name].flatten()), name
