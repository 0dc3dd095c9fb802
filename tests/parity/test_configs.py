# SPDX-License-Identifier: MIT OR Apache-2.0
"""Configs mean to us what they mean to transformers; checkpoints are placed tensor by tensor."""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from torch_mi.backends.transformer import parameter_shapes
from torch_mi.config.rope import Rope
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import MIError
from torch_mi.families import Family, Placement, read_config
from torch_mi.families.sources import Rows
from torch_mi.nn.rotary import Rotary

HERE = Path(__file__).resolve().parents[2]
CONFIGS = Path(os.environ.get("TORCH_MI_SHARED", HERE.parent / "shared")) / "data" / "configs"

Raw = dict[str, Any]


SEVEN = ("gemma", "gemma2", "llama", "mistral", "phi3", "qwen2", "starcoder2")
"""The families of which every field is compared here."""


def genuine() -> list[Path]:
    """Published configs of the seven, as first released and as transformers 5 rewrites them."""
    return [
        path
        for family in SEVEN
        for folder in (CONFIGS / family, CONFIGS / "transformers5" / family)
        for path in sorted(folder.glob("*.json"))
    ]


def reference(raw: Raw) -> Any:
    """The config object of transformers."""
    return CONFIG_MAPPING[raw["model_type"]].from_dict(copy.deepcopy(raw))


def reference_windows(hf: Any) -> tuple[int | None, ...]:
    """What the models of transformers mask by."""
    layers = range(hf.num_hidden_layers)
    if hf.model_type in {"qwen2", "gemma2"}:
        windowed = [hf.layer_types[i] == "sliding_attention" for i in layers]
    else:
        windowed = [hf.model_type in {"mistral", "phi3", "starcoder2"}] * len(layers)
    return tuple(hf.sliding_window if each else None for each in windowed)


def same_arithmetic(cfg: TransformerConfig, hf: Any) -> None:
    """Field by field, against the attributes that transformers' models read."""
    kind, said = hf.model_type, hf.to_dict()
    head = said.get("head_dim") or hf.hidden_size // hf.num_attention_heads
    assert cfg.hidden_size == hf.hidden_size
    assert cfg.num_layers == hf.num_hidden_layers
    assert cfg.num_attention_heads == hf.num_attention_heads
    assert cfg.num_kv_heads == hf.num_key_value_heads
    assert cfg.head_dim == head
    assert cfg.intermediate_size == hf.intermediate_size
    assert cfg.vocab_size == hf.vocab_size
    assert cfg.max_position_embeddings == hf.max_position_embeddings
    assert cfg.norm_eps == (hf.norm_epsilon if kind == "starcoder2" else hf.rms_norm_eps)
    assert cfg.tie_word_embeddings == hf.tie_word_embeddings
    assert cfg.windows == reference_windows(hf)
    scale = (hf.query_pre_attn_scalar if kind == "gemma2" else head) ** -0.5
    assert cfg.attn_scales == (scale,) * cfg.num_layers
    assert cfg.attn_logit_softcapping == said.get("attn_logit_softcapping")
    assert cfg.final_logit_softcapping == said.get("final_logit_softcapping")
    assert cfg.embedding_scale == (hf.hidden_size**0.5 if "gemma" in kind else None)
    x = torch.linspace(-4, 4, 201)
    act = ACT2FN[hf.hidden_activation if kind == "gemma2" else hf.hidden_act]
    torch.testing.assert_close(cfg.activation.function(x), act(x), atol=1e-6, rtol=1e-6)
    same_turning(cfg, hf)


def rope_of(cfg: TransformerConfig) -> Rope:
    """What turns every layer."""
    assert len(set(cfg.ropes)) == 1
    assert cfg.ropes[0] is not None
    return cfg.ropes[0]


def same_turning(cfg: TransformerConfig, hf: Any) -> None:
    """Rotary embedding, near the start and beyond the original context."""
    module = torch.nn.Module
    for each in rotary_modules():
        if each.__name__.lower().startswith(hf.model_type):
            module = each
    for position in (3, 5000, 150_000):
        positions = torch.tensor([[position]])
        cos, sin = module(hf)(torch.zeros(1), positions)
        ours = Rotary(rope_of(cfg), cfg.head_dim).tables(positions)
        dim = cos.shape[-1]
        assert dim == rope_of(cfg).dim
        torch.testing.assert_close(ours[0][:, :, 0, :dim], cos, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            ours[1][:, :, 0, dim // 2 : dim], sin[..., dim // 2 :], atol=1e-6, rtol=0
        )


def rotary_modules() -> Iterator[Any]:
    """The rotary module of each family."""
    for family in SEVEN:
        module = __import__(f"transformers.models.{family}.modeling_{family}", fromlist=["x"])
        yield next(
            value for name, value in vars(module).items() if name.endswith("RotaryEmbedding")
        )


def built(raw: Raw) -> Any:
    """The model of transformers, without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(reference(raw))


def taken(p: Placement) -> tuple[int, int]:
    """Which rows of the tensor there become our parameter."""
    if isinstance(p.source, Rows):
        return p.source.within(p.cfg)[:2]
    return 0, p.stored[0]


def same_tensors(family: Family, cfg: TransformerConfig, model: Any) -> None:
    """Every tensor of the reference has one place, and every parameter of ours one source."""
    theirs = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    shapes = parameter_shapes(cfg)
    plan = family.place(cfg, shapes, theirs)
    assert [p.ours for p in plan.placements] == list(shapes)
    assert {p.ours: p.shape for p in plan.placements} == shapes
    rows = dict[str, list[tuple[int, int]]]()
    for p in plan.placements:
        (name,) = p.theirs
        assert p.stored == theirs[name]
        start, stop = taken(p)
        assert (stop - start, *p.stored[1:]) == p.shape
        rows.setdefault(name, []).append((start, stop))
    for name, ranges in rows.items():
        assert [a for a, _ in ranges] == [0, *(b for _, b in ranges[:-1])]
        assert ranges[-1][1] == theirs[name][0]
    assert set(rows) | set(plan.duplicates) == set(theirs)
    assert set(plan.duplicates) == ({"lm_head.weight"} if cfg.tie_word_embeddings else set())
    assert not plan.ignored


SMALL: Raw = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.skipif(not genuine(), reason=f"no published configs in {CONFIGS}")
def test_published_configs_mean_what_they_mean_to_transformers() -> None:
    for path in genuine():
        raw = json.loads(path.read_text(encoding="utf-8"))
        try:
            same_arithmetic(read_config(raw)[1], reference(raw))
        except (AssertionError, MIError) as error:
            error.add_note(str(path))
            raise


@pytest.mark.skipif(not genuine(), reason=f"no published configs in {CONFIGS}")
def test_published_configs_survive_being_rewritten() -> None:
    for path in genuine():
        raw = json.loads(path.read_text(encoding="utf-8"))
        rewritten = json.loads(reference(raw).to_json_string(use_diff=True))
        full = json.loads(reference(raw).to_json_string(use_diff=False))
        assert read_config(rewritten)[1] == read_config(raw)[1] == read_config(full)[1], path


@pytest.mark.parametrize("family", SEVEN)
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_has_one_place(family: str, tied: bool) -> None:
    raw = {"model_type": family, **SMALL, "tie_word_embeddings": tied}
    ours, cfg = read_config(raw)
    same_tensors(ours, cfg, built(raw))


VARIANTS: dict[str, Raw] = {
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama with wide heads": {"model_type": "llama", "head_dim": 16},
    "gemma with biases": {"model_type": "gemma", "attention_bias": True, "head_dim": 8},
    "gemma2 with biases": {"model_type": "gemma2", "attention_bias": True},
    "qwen2 told of no bias": {"model_type": "qwen2", "attention_bias": False},
    "qwen2 with wide heads": {"model_type": "qwen2", "head_dim": 16},
    "phi3 with wide heads": {"model_type": "phi3", "head_dim": 16},
    "starcoder2 without biases": {"model_type": "starcoder2", "use_bias": False},
    "phi3, all heads alike": {"model_type": "phi3", "num_key_value_heads": None},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_biases_and_widths_follow_the_config(variant: str) -> None:
    raw = {**SMALL, **VARIANTS[variant]}
    ours, cfg = read_config(raw)
    model = built(raw)
    same_tensors(ours, cfg, model)
    same_arithmetic(cfg, model.config)


@pytest.mark.parametrize("family", SEVEN)
def test_fields_agree_with_the_models_modules(family: str) -> None:
    raw = {"model_type": family, **SMALL}
    _, cfg = read_config(raw)
    model = built(raw)
    by_layer = zip(model.model.layers, cfg.windows, cfg.attn_scales, strict=True)
    for layer, window, scale in by_layer:
        assert layer.self_attn.scaling == scale
        assert layer.self_attn.head_dim == cfg.head_dim
        if family in {"qwen2", "gemma2"}:
            assert layer.self_attn.sliding_window == window
    parts = [vars(module) for module in model.modules()]
    epsilons = {part.get("eps", part.get("variance_epsilon")) for part in parts} - {None}
    assert epsilons == {cfg.norm_eps}


def scarcely(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A value, or none: the key is then left out."""
    return st.none() | values


HALF = 4  # of heads that are 8 wide
FACTORS = st.lists(st.floats(1, 64), min_size=HALF, max_size=HALF)

ROPES = st.one_of(
    st.fixed_dictionaries({"type": st.just("default")}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["linear", "dynamic"]), "factor": st.floats(1, 9)}
    ),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("yarn"),
            "factor": st.none() | st.floats(1, 40) | st.integers(1, 40),
            "original_max_position_embeddings": st.integers(32, 4096),
        },
        optional={
            "beta_fast": st.floats(8, 64),
            "beta_slow": st.integers(1, 4),
            "mscale": st.floats(0.1, 2),
            "mscale_all_dim": st.none() | st.floats(0.1, 2),
            "attention_factor": st.none() | st.floats(0.1, 3),
            "truncate": st.booleans(),
            "rope_theta": st.floats(100, 1e6),
        },
    ),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": st.floats(1, 40),
            "low_freq_factor": st.floats(0.5, 2),
            "high_freq_factor": st.floats(3, 8),
            "original_max_position_embeddings": st.integers(32, 4096),
        },
    ),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("longrope"),
            "short_factor": FACTORS,
            "long_factor": FACTORS,
            "original_max_position_embeddings": st.integers(32, 4096),
        },
        optional={"factor": st.floats(1, 40), "attention_factor": st.none() | st.floats(0.1, 3)},
    ),
)

LAYER_TYPES = st.lists(
    st.sampled_from(["full_attention", "sliding_attention"]), min_size=3, max_size=3
)

COMMON: Raw = {
    "num_key_value_heads": st.sampled_from([1, 2, 4]),
    "head_dim": st.just(8),
    "max_position_embeddings": st.integers(64, 8192),
    "rope_theta": st.floats(100, 1e6) | st.integers(100, 10**6),
    "rope_scaling": ROPES,
    "tie_word_embeddings": st.booleans(),
    "attention_dropout": st.just(0.1),
    "temperature": st.just(0.7),
    "torch_dtype": st.just("bfloat16"),
}

RMS: Raw = {"rms_norm_eps": st.floats(1e-7, 1e-4)}
ACTS = st.sampled_from(
    ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "swish", "gelu_fast"]
)
WINDOW: Raw = {"sliding_window": st.integers(1, 99)}

KEYS: dict[str, Raw] = {
    "llama": {
        **RMS,
        "hidden_act": ACTS,
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "pretraining_tp": st.integers(1, 4),
    },
    "mistral": {**RMS, **WINDOW, "hidden_act": ACTS},
    "qwen2": {
        **RMS,
        **WINDOW,
        "hidden_act": ACTS,
        "use_sliding_window": st.booleans(),
        "max_window_layers": st.integers(0, 4),
    },
    "gemma": {**RMS, "hidden_act": ACTS, "attention_bias": st.booleans()},
    "gemma2": {
        **RMS,
        **WINDOW,
        "hidden_act": ACTS,
        "hidden_activation": ACTS,
        "attn_logit_softcapping": st.floats(1, 99),
        "final_logit_softcapping": st.floats(1, 99),
        "query_pre_attn_scalar": st.integers(1, 512),
        "layer_types": LAYER_TYPES,
    },
    "phi3": {
        **RMS,
        **WINDOW,
        "hidden_act": ACTS,
        "original_max_position_embeddings": st.integers(32, 4096),
        "rope_scaling": st.fixed_dictionaries(
            {"type": st.just("longrope"), "short_factor": FACTORS, "long_factor": FACTORS}
        ),
    },
    "starcoder2": {
        **WINDOW,
        "norm_epsilon": st.floats(1e-7, 1e-4),
        "hidden_act": ACTS,
        "use_bias": st.booleans(),
        "norm_type": st.sampled_from(["layer_norm", "rms_norm"]),
    },
}

NULL_MEANS_SOMETHING = {
    "mistral": ("sliding_window",),
    "phi3": ("sliding_window", "num_key_value_heads"),
    "starcoder2": ("sliding_window",),
    "qwen2": ("sliding_window", "layer_types"),
    "gemma2": ("attn_logit_softcapping", "final_logit_softcapping", "layer_types"),
    "llama": ("head_dim", "rope_scaling"),
}


@st.composite
def configs(draw: st.DrawFn, family: str) -> Raw:
    """Configs with any of the keys that matter left out, and some of them null."""
    raw: Raw = {"model_type": family, **SMALL}
    del raw["num_key_value_heads"]
    for key, values in {**COMMON, **KEYS[family]}.items():
        if (value := draw(scarcely(values))) is not None:
            raw[key] = value
    for key in NULL_MEANS_SOMETHING.get(family, ()):
        if draw(st.integers(0, 4)) == 0:
            raw[key] = None
    # where heads are shared by default among more than these models have, no model can be built
    if family in {"mistral", "qwen2", "gemma"}:
        raw.setdefault("num_key_value_heads", 2)
    if family in {"gemma", "gemma2"}:
        raw.setdefault("head_dim", 8)
    return raw


@pytest.mark.parametrize("family", KEYS)
def test_any_config_means_what_it_means_to_transformers(family: str) -> None:
    @given(configs(family))
    @settings(max_examples=30, deadline=None, database=None, derandomize=True)
    def run(raw: Raw) -> None:
        hf = reference(raw)
        _, cfg = read_config(raw)
        same_arithmetic(cfg, hf)
        assert read_config(json.loads(hf.to_json_string(use_diff=True)))[1] == cfg

    run()
