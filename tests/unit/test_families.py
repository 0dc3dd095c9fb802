# SPDX-License-Identifier: MIT OR Apache-2.0
"""Families read published configs rightly, and refuse what they do not model, saying why."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_mi import testing
from torch_mi.backends.transformer import parameter_shapes
from torch_mi.config.activation import Activation
from torch_mi.config.parts import BlockLayout, NormType
from torch_mi.config.rope import DynamicNtk, Llama3, LongRope, Rope, Yarn
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError, ModelError
from torch_mi.families import FAMILIES, Family, Plan, eos_token_ids, read_config
from torch_mi.families.sources import Rows, source_name

HERE = Path(__file__).resolve().parents[2]
CONFIGS = Path(os.environ.get("TORCH_MI_SHARED", HERE.parent / "shared")) / "data" / "configs"

Raw = dict[str, Any]

SMALL: Raw = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
}


def small(model_type: str = "llama", **more: Any) -> Raw:
    return {"model_type": model_type, **SMALL, **more}


def parse(model_type: str = "llama", **more: Any) -> TransformerConfig:
    return read_config(small(model_type, **more))[1]


def rope_of(cfg: TransformerConfig) -> Rope:
    """What turns every layer."""
    assert len(set(cfg.ropes)) == 1
    assert cfg.ropes[0] is not None
    return cfg.ropes[0]


def published(name: str) -> TransformerConfig:
    path = CONFIGS / name
    if not path.exists():
        pytest.skip(f"no published configs in {CONFIGS}")
    return read_config(json.loads(path.read_text(encoding="utf-8")))[1]


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_llama_3_2_1b(era: str) -> None:
    cfg = published(f"{era}llama/llama3_2_1b.json")
    assert (cfg.num_layers, cfg.num_attention_heads, cfg.num_kv_heads) == (16, 32, 8)
    assert (cfg.head_dim, cfg.hidden_size, cfg.vocab_size) == (64, 2048, 128256)
    assert rope_of(cfg) == Rope(5e5, 64, Llama3(32.0, 1.0, 4.0, 8192))
    assert cfg.tie_word_embeddings
    assert not cfg.qkv_bias
    assert cfg.norm_type is NormType.Rms
    assert cfg.norm_eps == 1e-5
    assert cfg.activation is Activation.Silu
    assert set(cfg.attn_scales) == {0.125}
    assert cfg.windows == (None,) * 16


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_gemma_2_2b(era: str) -> None:
    cfg = published(f"{era}gemma2/google__gemma-2-2b.json")
    assert (cfg.attn_logit_softcapping, cfg.final_logit_softcapping) == (50.0, 30.0)
    assert set(cfg.attn_scales) == {1 / 16}
    assert cfg.embedding_scale == 48.0
    assert cfg.windows == (4096, None) * 13
    assert (cfg.head_dim, cfg.num_attention_heads, cfg.num_kv_heads) == (256, 8, 4)
    assert cfg.layout is BlockLayout.Sandwich
    assert cfg.tie_word_embeddings
    assert cfg.norm_type is NormType.RmsPlusOne
    assert cfg.activation is Activation.GeluTanh


def test_gemma_2_27b_scales_by_its_own_scalar() -> None:
    assert published("gemma2/gemma2_27b.json").attn_scales == (144**-0.5,) * 46


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_phi_4_mini(era: str) -> None:
    cfg = published(f"{era}phi3/microsoft__phi-4-mini-instruct.json")
    assert (cfg.head_dim, rope_of(cfg).dim, cfg.num_kv_heads) == (128, 96, 8)
    scaling = rope_of(cfg).scaling
    assert isinstance(scaling, LongRope)
    assert scaling.context == 4096
    assert scaling.short_factor == (1.0,) * 48
    assert scaling.long_factor[-1] == 47.77
    assert scaling.attention_factor == pytest.approx(1.1902380714238083, abs=1e-12)
    assert cfg.windows == (262144,) * 32
    assert cfg.tie_word_embeddings


def test_others() -> None:
    mistral = published("mistral/mistralai__mistral-7b-v0.1.json")
    assert mistral.windows == (4096,) * 32
    assert mistral.num_kv_heads == 8
    assert published("mistral/mistral_7b_v03.json").windows == (None,) * 32
    gemma = published("gemma/google__gemma-7b.json")
    assert gemma.activation is Activation.GeluTanh
    assert gemma.embedding_scale == 3072**0.5
    assert (gemma.head_dim, gemma.hidden_size) == (256, 3072)
    qwen = published("qwen2/qwen2_7b.json")
    assert (qwen.qkv_bias, qwen.o_proj_bias, qwen.mlp_bias) == (True, False, False)
    assert qwen.windows == (None,) * 28
    starcoder = published("starcoder2/starcoder2.json")
    assert starcoder.norm_type is NormType.Layer
    assert not starcoder.gated_mlp
    assert starcoder.qkv_bias
    assert starcoder.o_proj_bias
    assert starcoder.mlp_bias
    assert starcoder.windows == (4096,) * 32
    assert rope_of(starcoder) == Rope(1e6, 128)


def test_other_makers_models_that_say_llama() -> None:
    deepseek = parse(rope_scaling={"factor": 4.0, "type": "linear"}, rope_theta=100000)
    assert rope_of(deepseek).theta == 1e5
    yi = parse(pad_token_id=0, attention_bias=False, rope_theta=5e6, sliding_window=None)
    assert yi.windows == (None,) * 3
    old = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64}
    assert isinstance(rope_of(parse(rope_scaling={**old, "finetuned": True})).scaling, Yarn)


def test_null_counts_as_absent_except_where_it_says_none() -> None:
    assert parse(num_key_value_heads=None).num_kv_heads == 4
    assert parse(head_dim=None).head_dim == 8
    assert parse("mistral").windows == (4096,) * 3
    assert parse("mistral", sliding_window=None).windows == (None,) * 3
    assert parse("gemma2").attn_logit_softcapping == 50.0
    assert parse("gemma2", attn_logit_softcapping=None).attn_logit_softcapping is None
    assert parse("gemma2", final_logit_softcapping=None).final_logit_softcapping is None
    assert parse("gemma2").head_dim == 256
    assert parse(some_future_key=None) == parse()


def test_windows_of_qwen2() -> None:
    on = {"use_sliding_window": True, "sliding_window": 7}
    assert parse("qwen2", **on, max_window_layers=1).windows == (None, 7, 7)
    assert parse("qwen2", **on).windows == (None,) * 3
    assert parse("qwen2", sliding_window=7, max_window_layers=0).windows == (None,) * 3
    kinds = ["sliding_attention", "full_attention", "attention"]
    assert parse("qwen2", **on, layer_types=kinds).windows == (7, None, None)


def test_new_and_old_spellings_of_rotary_embedding_agree() -> None:
    scaling = {"factor": 2.0, "type": "dynamic"}
    old = parse(rope_theta=5.0, rope_scaling=scaling, max_position_embeddings=64)
    new = {"rope_type": "dynamic", "factor": 2, "rope_theta": 5}
    by_layer = {"full_attention": new, "sliding_attention": dict(new)}
    assert rope_of(old) == Rope(5.0, 8, DynamicNtk(2.0, 64))
    assert parse(rope_parameters=new, max_position_embeddings=64) == old
    assert parse(rope_parameters=by_layer, max_position_embeddings=64) == old
    sections = {"type": "mrope", "mrope_section": [1, 1, 2]}
    assert rope_of(parse(rope_scaling=sections)) == Rope(1e4, 8)


def test_eos_token_ids() -> None:
    assert eos_token_ids({"eos_token_id": 2}) == (2,)
    assert eos_token_ids({"eos_token_id": [128001, 128008]}) == (128001, 128008)
    assert eos_token_ids({"eos_token_id": None}) == eos_token_ids({}) == ()
    with pytest.raises(ConfigError, match="'<eos>' is not a token id"):
        eos_token_ids({"eos_token_id": "<eos>"})


YARN = {"rope_type": "yarn", "factor": 2.0}

REFUSED: list[tuple[Raw, str]] = [
    ({}, "missing 'model_type'"),
    ({"model_type": 3}, "missing 'model_type'"),
    ({"model_type": "bert"}, "'bert' is an encoder, which predicts no next token"),
    ({"model_type": "lama"}, "did you mean 'llama'?"),
    ({"model_type": "llama"}, "lacks 'hidden_size', a whole number"),
    (small(hidden_size=32.0), "hidden_size = 32.0 where a whole number is needed"),
    (small(hidden_size=True), "hidden_size = True where a whole number is needed"),
    (small(rms_norm_eps="1e-5"), "rms_norm_eps = '1e-5' where a number is needed"),
    (small(attention_bias="no"), "attention_bias = 'no' where true or false is needed"),
    (small(hidden_act=3), "hidden_act = 3 where a string is needed"),
    (small(rope_scaling="linear"), "rope_scaling = 'linear' where an object is needed"),
    (small(hidden_act="quick_gelu"), "activation 'quick_gelu' is not modelled; known are silu"),
    (small(q_norm=True), "llama has no use for q_norm = True"),
    (small(rms_norm_epsilon=1e-5), "did you mean 'rms_norm_eps'?"),
    (small(quantization_config={"bits": 4}), "no use for quantization_config"),
    (small(sliding_window=4096), "llama has no use for sliding_window = 4096"),
    (small(rope_interleaved=True), "in llama only False is modelled"),
    (small(is_causal=False), "in llama only True is modelled"),
    (small("gemma", use_bidirectional_attention=True), "in gemma only False is modelled"),
    (small("phi3", lm_head_bias=True), "in phi3 only False is modelled"),
    (small("mistral", attention_bias=True), "in mistral only False is modelled"),
    (small(num_attention_heads=5), "5 attention heads cannot share a width of 32 evenly"),
    (small(num_attention_heads=0), "0 attention heads cannot share a width of 32 evenly"),
    (small(num_key_value_heads=3), "4 attention heads cannot share 3 key/value heads evenly"),
    (small(num_key_value_heads=0), "num_kv_heads = 0 is not positive"),
    (small(vocab_size=-1), "vocab_size = -1 is not positive"),
    (small(head_dim=5), "5 rotary dimensions: an even number above zero is needed"),
    (small("mistral", sliding_window=0), "a window without keys"),
    (small("gemma2", sliding_window=None), "there is no sliding_window"),
    (small("gemma2", query_pre_attn_scalar=0), "root of 0.0"),
    (small("gemma2", layer_types=["full_attention"]), "1 layer_types for 3 layers"),
    (small("gemma2", layer_types=["chunked"] * 3), "layers of type 'chunked' are not modelled"),
    (small("mistral", layer_types=["full_attention"] * 3), "layer_types says otherwise"),
    (small(rope_theta=0), "rope_theta = 0.0 is not positive"),
    (small(rope_scaling={"type": "yarm"}), "known are default, linear, dynamic, yarn, llama3"),
    (small(rope_scaling={"type": "yarm"}), "did you mean 'yarn'?"),
    (small(rope_scaling={"type": "su"}), "rotary embedding of type 'su' is not modelled"),
    (small("phi3", rope_scaling={"type": "linear"}), "known are default, longrope"),
    (small(rope_scaling={"type": "linear"}), "rope_scaling lacks 'factor', a number"),
    (small(rope_scaling={"type": "linear", "factor": 0}), "factor = 0.0 is not positive"),
    (small(rope_scaling={"factor": 8.0}), "type 'default' has no use for factor = 8.0"),
    (small(partial_rotary_factor=0.5), "turns whole heads; partial_rotary_factor = 0.5"),
    (small(rope_scaling=YARN, rope_parameters={"rope_theta": 5.0}), "disagree"),
    (
        small(
            "gemma2",
            rope_parameters={
                "full_attention": {"rope_theta": 1e6},
                "sliding_attention": {"rope_theta": 1e4},
            },
        ),
        "rope_parameters['sliding_attention'] and rope_parameters['full_attention'] disagree",
    ),
    (
        small(rope_scaling={"type": "longrope", "short_factor": [1], "long_factor": [1] * 4}),
        "short_factor has 1 entries, but 8 rotary dimensions need 4",
    ),
    (
        small(rope_scaling={"type": "longrope", "short_factor": ["1"], "long_factor": [1] * 4}),
        "short_factor[0] = '1' where a number is needed",
    ),
    (
        small("phi3", rope_parameters={"original_max_position_embeddings": 64}),
        "this model_type reads it from the top level only",
    ),
    (
        small(
            rope_scaling={
                "type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 1,
            }
        ),
        "low_freq_factor and high_freq_factor are both 1.0",
    ),
    (
        small(rope_scaling={"type": "dynamic", "factor": 2.0}, head_dim=2),
        "needs more than 2 rotary dimensions",
    ),
]


@pytest.mark.parametrize(("raw", "message"), REFUSED)
def test_what_is_not_understood_is_refused(raw: Raw, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(raw)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_refuses_a_key_it_does_not_know(family: str) -> None:
    raw = {"model_type": family, **testing.COMMON, **FAMILIES[family].tiny}
    with pytest.raises(ConfigError, match=f"{family} has no use for mystery = 1"):
        read_config({**raw, "mystery": 1})


def plan_of(family: Family, cfg: TransformerConfig, names: list[str]) -> Plan:
    """Where the parameters lie among `names`."""
    return family.place(cfg, parameter_shapes(cfg), names)


def stored(model_type: str, **more: Any) -> tuple[Any, TransformerConfig, list[str]]:
    """A family, a config and the names in a checkpoint of it."""
    family, cfg = read_config(small(model_type, **more))
    names = set[str]()
    for ours in parameter_shapes(cfg):
        module, _, leaf = ours.rpartition(".")
        layer = next((part for part in module.split(".") if part.isdecimal()), "")
        source = source_name(family.sources[re.sub(r"\.\d+\.", ".*.", module)])
        names.add(f"{source}.{leaf}".replace("*", layer))
    return family, cfg, sorted(names)


def test_fused_tensors_are_placed_by_rows() -> None:
    family, cfg, names = stored("phi3")
    places = {p.ours: p for p in plan_of(family, cfg, names).placements}
    q, k, v = (places[f"blocks.1.attn.{each}.weight"] for each in "qkv")
    assert q.theirs == k.theirs == v.theirs == ("model.layers.1.self_attn.qkv_proj.weight",)
    rows = [p.source.within(cfg) for p in (q, k, v) if isinstance(p.source, Rows)]
    assert rows == [(0, 32, 64), (32, 48, 64), (48, 64, 64)]
    assert q.stored == k.stored == (64, 32)
    assert (q.shape, k.shape) == ((32, 32), (16, 32))
    gate, up = places["blocks.2.mlp.gate.weight"], places["blocks.2.mlp.up.weight"]
    rows = [p.source.within(cfg) for p in (gate, up) if isinstance(p.source, Rows)]
    assert rows == [(0, 24, 48), (24, 48, 48)]
    assert gate.stored == (48, 32)
    assert not isinstance(places["norm.weight"].source, Rows)
    whole = torch.arange(64 * 32).view(64, 32)
    assert torch.equal(k.take([whole]), whole[32:48])


def test_one_name_plays_two_roles() -> None:
    name = "model.layers.0.post_attention_layernorm.weight"
    for model_type, ours in {
        "gemma": "blocks.0.norm2.weight",
        "gemma2": "blocks.0.post1.weight",
    }.items():
        family, cfg, names = stored(model_type)
        assert {p.theirs: p.ours for p in plan_of(family, cfg, names).placements}[name,] == ours


def test_tied_models_may_store_either_copy_or_both() -> None:
    family, cfg, names = stored("gemma")
    assert "lm_head.weight" not in names
    assert not plan_of(family, cfg, names).duplicates
    both = plan_of(family, cfg, [*names, "lm_head.weight"])
    assert both.duplicates == {"lm_head.weight": "tokens.weight"}
    assert both.placements == plan_of(family, cfg, names).placements
    only = ["lm_head.weight", *(n for n in names if "embed" not in n)]
    plan = plan_of(family, cfg, only)
    assert plan.placements[0].theirs == ("lm_head.weight",)
    assert plan.placements[0].ours == "tokens.weight"


def test_names_without_the_prefix_are_understood() -> None:
    family, cfg, names = stored("llama")
    bare = [name.removeprefix("model.") for name in names]
    plan = plan_of(family, cfg, bare)
    assert sorted(p.theirs for p in plan.placements) == sorted((name,) for name in bare)
    with pytest.raises(ModelError, match=re.escape("no place in this model: norm.weight")):
        plan_of(family, cfg, [*names, "norm.weight"])


def test_buffers_of_old_checkpoints_are_passed_over() -> None:
    family, cfg, names = stored("llama")
    old = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(3)]
    assert plan_of(family, cfg, [*names, *old]).ignored == tuple(old)
    with pytest.raises(ModelError, match=r"rotary_emb\.inv_frequency"):
        plan_of(family, cfg, [*names, "model.layers.0.self_attn.rotary_emb.inv_frequency"])


def test_missing_tensors_are_named_with_the_nearest_found() -> None:
    family, cfg, names = stored("llama")
    names.remove("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelError) as caught:
        plan_of(family, cfg, names)
    assert "lacks model.layers.1.mlp.up_proj.weight; it has" in str(caught.value)
    assert str(caught.value).count("model.layers.") == 4
    with pytest.raises(ModelError, match=r"lacks .*\(and 29 more\); it has nothing like it"):
        plan_of(family, cfg, ["zzz"])


def test_extra_tensors_are_named_and_counted() -> None:
    family, cfg, names = stored("qwen2")
    extra = [f"model.layers.{i}.self_attn.{n}_norm.weight" for i in range(3) for n in "qk"]
    with pytest.raises(ModelError) as caught:
        plan_of(family, cfg, [*names, *extra])
    assert "6 of the checkpoint's tensors have no place" in str(caught.value)
    assert "model.layers.0.self_attn.k_norm.weight" in str(caught.value)
    assert str(caught.value).endswith("and 1 more")
    beyond = [name.replace("layers.2", "layers.3") for name in names]
    with pytest.raises(ModelError, match=re.escape("model.layers.3.input_layernorm.weight")):
        plan_of(family, cfg, [*names, *(n for n in beyond if "layers.3" in n)])


def test_a_family_is_a_difference() -> None:
    llama, qwen2 = FAMILIES["llama"], FAMILIES["qwen2"]
    assert qwen2.sources == llama.sources
    other = llama.but("other", inert={"mystery"}, sources={"head": "output"})
    cfg = other.config({**small(), "mystery": 1})
    assert cfg == parse()
    with pytest.raises(ConfigError):
        llama.config({**small(), "mystery": 1})
    assert "head" in llama.sources
    assert llama.sources["head"] == "lm_head"
