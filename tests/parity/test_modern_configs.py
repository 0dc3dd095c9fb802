# SPDX-License-Identifier: MIT OR Apache-2.0
"""Configs of the later dense families mean to us what they mean to transformers."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity.oracle import same_arithmetic, same_tensors
from tests.parity.published import FULL, SLIDING, Raw
from tests.parity.test_configs import ACTS, ROPES, SMALL, reference, scarcely
from torch_mi.families import FAMILIES, read_config
from torch_mi.families.gemma3 import GEMMAS
from torch_mi.families.modern import MODERN

HERE = tuple(family.model_type for family in (*MODERN, *GEMMAS))


def newer(turning: Raw) -> Raw:
    """The same by its newer name, the only one that is read where there are two."""
    return {"rope_type" if key == "type" else key: value for key, value in turning.items()}


HEAD: Raw = {"head_dim": st.just(8)}
BIASED: Raw = {"attention_bias": st.booleans()}
EPS: Raw = {"rms_norm_eps": st.floats(1e-7, 1e-4)}
CENTRED_EPS: Raw = {"layer_norm_eps": st.floats(1e-7, 1e-4)}
WINDOW: Raw = {"sliding_window": st.integers(1, 99)}
KINDS: Raw = {"layer_types": st.lists(st.sampled_from([FULL, SLIDING]), min_size=3, max_size=3)}
PATTERN: Raw = {"sliding_window_pattern": st.integers(1, 5)}
TURNS: Raw = {"rope_theta": st.floats(100, 1e6) | st.integers(100, 10**6), "rope_scaling": ROPES}
NEWER = ROPES.map(newer)
FEWER_TURNS: Raw = {
    **TURNS,
    "rope_scaling": st.fixed_dictionaries({"type": st.just("default")})
    | st.fixed_dictionaries({"type": st.just("linear"), "factor": st.floats(1, 9)}),
}
SCALE = st.floats(0.1, 9) | st.just(1.0) | st.integers(1, 4)

KEYS: dict[str, Raw] = {
    "qwen3": {**EPS, **WINDOW, **HEAD, **BIASED, **TURNS, "use_sliding_window": st.booleans()}
    | {"max_window_layers": st.integers(0, 4)},
    "smollm3": {**EPS, **WINDOW, **HEAD, **BIASED, **TURNS, "mlp_bias": st.booleans()}
    | {"no_rope_layers": st.lists(st.integers(0, 1), min_size=3, max_size=5)}
    | {"no_rope_layer_interval": st.integers(1, 5), "use_sliding_window": st.booleans()},
    "granite": {**EPS, **HEAD, **BIASED, **TURNS, "mlp_bias": st.booleans()}
    | {"attention_multiplier": SCALE, "embedding_multiplier": SCALE}
    | {"residual_multiplier": SCALE, "logits_scaling": SCALE},
    "cohere": {**CENTRED_EPS, **HEAD, **BIASED, **TURNS, "use_qk_norm": st.booleans()}
    | {"logit_scale": st.floats(0.1, 9)},
    "cohere2": {**CENTRED_EPS, **WINDOW, **KINDS, **PATTERN, **BIASED, **TURNS}
    | {"logit_scale": st.floats(0.1, 9)},
    "olmo": {**HEAD, **BIASED, **TURNS, "clip_qkv": st.floats(0.1, 9)},
    "olmo2": {**EPS, **HEAD, **BIASED, **TURNS},
    "olmo3": {**EPS, **HEAD, **BIASED, **WINDOW, **KINDS, "rope_scaling": NEWER},
    "exaone4": {**EPS, **HEAD, **WINDOW, **KINDS, **PATTERN, **TURNS},
    "stablelm": {**CENTRED_EPS, **FEWER_TURNS, "use_qkv_bias": st.booleans()}
    | {"qk_layernorm": st.booleans(), "use_parallel_residual": st.booleans()}
    | {"partial_rotary_factor": st.sampled_from([0.25, 0.5, 1.0])},
    "gemma3_text": {**EPS, **HEAD, **BIASED, **WINDOW, **KINDS, **PATTERN}
    | {"rope_theta": TURNS["rope_theta"], "rope_local_base_freq": TURNS["rope_theta"]}
    | {"rope_scaling": NEWER, "query_pre_attn_scalar": st.integers(1, 512)}
    | {"final_logit_softcapping": st.floats(1, 99), "hidden_activation": ACTS},
}

ANY: Raw = {
    "num_key_value_heads": st.sampled_from([1, 2, 4]),
    "max_position_embeddings": st.integers(64, 8192),
    "tie_word_embeddings": st.booleans(),
    "attention_dropout": st.just(0.1),
    "torch_dtype": st.just("bfloat16"),
}

NULLS = {
    "olmo": ("clip_qkv", "num_key_value_heads"),
    "granite": ("num_key_value_heads",),
    "olmo2": ("num_key_value_heads",),
    "qwen3": ("sliding_window", "layer_types"),
    "smollm3": ("sliding_window", "no_rope_layers", "num_key_value_heads"),
    "exaone4": ("sliding_window",),
    "gemma3_text": ("layer_types", "final_logit_softcapping"),
}
"""Keys of which null means something."""


NEEDED: dict[str, Raw] = {
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "exaone4": {"num_key_value_heads": 2},
    "stablelm": {"num_key_value_heads": 2},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8},
}
"""Keys that are wider by default than these models are."""


@st.composite
def configs(draw: st.DrawFn, family: str) -> Raw:
    """Configs with any of the keys that matter left out, and some of them null."""
    raw: Raw = {"model_type": family, **SMALL}
    del raw["num_key_value_heads"]
    if family != "gemma3_text":
        raw["hidden_act"] = draw(ACTS)
    for key, values in {**ANY, **KEYS[family]}.items():
        if (value := draw(scarcely(values))) is not None:
            raw[key] = value
    for key in NULLS.get(family, ()):
        if draw(st.integers(0, 4)) == 0:
            raw[key] = None
    for key, value in NEEDED.get(family, {}).items():
        raw.setdefault(key, value)
    if family == "exaone4" and raw.get("sliding_window", 1) is None:
        raw["layer_types"] = [FULL] * 3  # without them transformers divides by zero
    return raw if family not in ("gemma3_text", "olmo3") else without_truncate(raw)


def without_truncate(raw: Raw) -> Raw:
    """Of rotary embeddings by kind of layer, transformers reads that key where it never is."""
    scaling = raw.get("rope_scaling")
    if not isinstance(scaling, dict):
        return raw
    return {**raw, "rope_scaling": {k: v for k, v in scaling.items() if k != "truncate"}}


def test_every_family_is_generated() -> None:
    assert {*KEYS, "gemma3"} == set(HERE)
    assert set(HERE) <= set(FAMILIES)


@pytest.mark.parametrize("family", KEYS)
def test_any_config_means_what_it_means_to_transformers(family: str) -> None:
    @given(configs(family))
    @settings(max_examples=12, deadline=None, database=None, derandomize=True)
    def run(raw: Raw) -> None:
        hf = reference(raw)
        _, cfg = read_config(raw)
        same_arithmetic(cfg, hf)
        assert read_config(json.loads(hf.to_json_string(use_diff=True)))[1] == cfg

    run()


@pytest.mark.parametrize("family", KEYS)
def test_any_model_has_its_tensors_placed(family: str) -> None:
    @given(configs(family))
    @settings(max_examples=8, deadline=None, database=None, derandomize=True)
    def run(raw: Raw) -> None:
        same_tensors(raw)

    run()


def test_a_text_config_means_the_same_within_another() -> None:
    @given(configs("gemma3_text"))
    @settings(max_examples=12, deadline=None, database=None, derandomize=True)
    def run(raw: Raw) -> None:
        text = {key: value for key, value in raw.items() if key not in OUTER}
        text.pop("final_logit_softcapping", None)
        whole = {"model_type": "gemma3", "text_config": text}
        whole["tie_word_embeddings"] = raw.get("tie_word_embeddings", True)
        same_arithmetic(read_config(whole)[1], reference(whole))

    run()


OUTER = {"tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id", "torch_dtype"}


def test_a_saved_file_is_read_as_well(tmp_path: Path) -> None:
    raw = {"model_type": "gemma3", "text_config": {**SMALL, "head_dim": 8}}
    reference(raw).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert read_config(saved)[1] == read_config(raw)[1]
