# SPDX-License-Identifier: MIT OR Apache-2.0
"""Unknown model types: made out rightly from keys and tensors' names, or refused, saying why."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from torch_mi import testing
from torch_mi.backends.build import shapes_of
from torch_mi.backends.transformer import parameter_shapes
from torch_mi.compatibility import CompatibilityReport, check
from torch_mi.config.parts import BlockLayout, NormType, Over, QkNorm
from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError
from torch_mi.families import FAMILIES, Family, read_config
from torch_mi.families.auto import BASES, UNSEEN, Inferred, infer
from torch_mi.families.names import placement
from torch_mi.families.report import diagnose
from torch_mi.model import MIModel

HERE = Path(__file__).resolve().parents[2]
CONFIGS = Path(os.environ.get("TORCH_MI_SHARED", HERE.parent / "shared")) / "data" / "configs"

Raw = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

KNOWN = [family.model_type for family in BASES]

SHOWN = """
    falcon gpt2 gpt_bigcode granite internlm internlm2 llama mistral olmo2 olmo3 opt phi phi-msft
    phi3 qwen2 qwen3 smollm3 stablelm starcoder2
"""

REPRODUCED = SHOWN.split()
"""Families whose tiny models show all of their arithmetic."""

INVISIBLE = {
    "bloom": "scores fall with distance",
    "cohere": "rotary pairs are interleaved",
    "deepseek": "tokens are sent to experts",
    "deepseek_v2": "keys and values are squeezed",
    "deepseek_v3": "keys and values are squeezed",
    "exaone4": "some layers do not turn",
    "gemma2": "norms multiply by 1 + gain",
    "gemma3_text": "norms multiply by 1 + gain",
    "gpt_neo": "scores are not divided by the root",
    "gpt_neox": "attention and MLP run side by side",
    "gptj": "rotary pairs are interleaved",
    "mixtral": "tokens are sent to experts",
    "mpt": "norms take off the mean and have no bias",
    "olmo": "norms have no parameters",
    "olmoe": "tokens are sent to experts",
    "qwen2_moe": "tokens are sent to experts",
    "qwen3_moe": "tokens are sent to experts",
}
"""Families whose arithmetic shows neither in names nor in keys, though the names are theirs."""

ONLY_BY_NAME = {
    "cohere2": "some layers do not turn",
    "gemma": "norms multiply by 1 \\+ gain, embeddings are scaled",
}
"""Families whose tiny models look like others': only what they are called gives them away."""

MAY_DIFFER = {"norm_type", "norm_eps", "embedding", "ropes", "head", "activation", "windows"}
"""What is assumed to be plain of a model that looks like LLaMA."""


def tiny_raw(name: str, **more: Any) -> Raw:
    family = FAMILIES[name]
    return {"model_type": name, **testing.COMMON, **family.respelt(family.tiny), **more}


def stored(family: Family, cfg: TransformerConfig) -> Shapes:
    """The tensors of a checkpoint of a known family."""
    found: Shapes = {}
    for ours, shape in parameter_shapes(cfg).items():
        place = placement(ours, shape, cfg, family.sources)
        found |= dict.fromkeys(place.theirs, tuple(place.stored))
    return found


def measured(
    cfg: TransformerConfig | RecurrentConfig, _stored: object
) -> Mapping[str, tuple[int, ...]]:
    return shapes_of(cfg)


def guess(raw: Raw, shapes: Shapes, name: str = "zebra") -> Inferred:
    return infer({**raw, "model_type": name, "architectures": ["XForCausalLM"]}, shapes, measured)


def known(raw: Raw) -> tuple[TransformerConfig, Shapes]:
    """What a known family makes of a config, and the checkpoint it would have."""
    family, cfg = read_config(raw)
    return cfg, stored(family, cfg)


def test_every_family_is_accounted_for() -> None:
    listed = [*REPRODUCED, *INVISIBLE, *ONLY_BY_NAME]
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) >= set(KNOWN), set(KNOWN) - set(listed)


@pytest.mark.parametrize("called", ["my_{}", "zebra"])
@pytest.mark.parametrize("family", REPRODUCED)
def test_what_shows_is_read_as_the_family_reads_it(family: str, called: str) -> None:
    if family not in FAMILIES:
        pytest.skip(f"{family} is no family here")
    cfg, shapes = known(tiny_raw(family))
    found = guess(tiny_raw(family), shapes, called.format(family))
    assert not found.issues
    assert found.config == cfg
    assert UNSEEN in found.assumptions
    plan = found.family.place(cfg, parameter_shapes(cfg), list(shapes))
    assert {name for p in plan.placements for name in p.theirs} == set(shapes)


@pytest.mark.parametrize("called", ["my_{}", "zebra"])
@pytest.mark.parametrize("family", INVISIBLE)
def test_what_does_not_show_is_refused(family: str, called: str) -> None:
    if family not in FAMILIES:
        pytest.skip(f"{family} is no family here")
    _, shapes = known(tiny_raw(family))
    found = guess(tiny_raw(family), shapes, called.format(family))
    assert found.config is None
    assert any(INVISIBLE[family] in issue for issue in found.issues), found.issues
    stem = re.split(r"[\d_]", family)[0]
    assert any(f"set model_type to '{stem}" in issue for issue in found.issues)


@pytest.mark.parametrize("family", ONLY_BY_NAME)
def test_a_name_that_hints_at_hidden_arithmetic_is_refused(family: str) -> None:
    cfg, shapes = known(tiny_raw(family))
    found = guess(tiny_raw(family), shapes, f"my_{family}")
    assert found.config is None
    assert any(re.search(ONLY_BY_NAME[family], issue) for issue in found.issues), found.issues
    assert f"the name 'my_{family}' hints at {family}" in found.issues[0]
    nameless = guess(tiny_raw(family), shapes)
    if nameless.config is not None:  # then it says what it assumed
        assert UNSEEN in nameless.assumptions
        differing = {name for name in vars(cfg) if vars(cfg)[name] != vars(nameless.config)[name]}
        assert differing <= MAY_DIFFER


def genuine() -> list[Path]:
    """Published configs of known families."""
    return sorted(p for name in KNOWN for p in (CONFIGS / name).glob("*.json"))


def shallow(raw: Raw) -> Raw:
    """The first layers and experts of a model: enough for every pattern of layers to show."""
    keys = [key for key in ("num_hidden_layers", "n_layer") if key in raw]
    telling = "layer_types|layer_freq|pattern|k_dense|sparse_step|use_sliding_window"
    patterned = any(re.search(telling, key) and value for key, value in raw.items())
    depth = min(raw[keys[0]], 8 if patterned else 2)
    lists = {k: v[:depth] for k, v in raw.items() if isinstance(v, list) and k.startswith("layer")}
    many = ("n_routed_experts", "num_experts", "num_local_experts")
    experts = {key: min(raw[key], 16) for key in many if key in raw}
    return {**raw, **lists, **experts, **dict.fromkeys(keys, depth)}


def unlike() -> dict[Path, Raw]:
    """Published configs, one of those that differ in sizes alone."""
    found: dict[object, tuple[Path, Raw]] = {}
    for path in genuine():
        raw = shallow(json.loads(path.read_text(encoding="utf-8")))
        switches = {k: v for k, v in raw.items() if not isinstance(v, int | float) or v in (0, 1)}
        found.setdefault(json.dumps([sorted(raw), switches], sort_keys=True), (path, raw))
    return dict(found.values())


@pytest.mark.slow
@pytest.mark.skipif(not genuine(), reason=f"no published configs in {CONFIGS}")
def test_published_configs_are_read_rightly_or_refused() -> None:
    """None is ever read as something else, unless what differs is said to be assumed."""
    alike, refused = 0, 0
    for path, raw in unlike().items():
        cfg, shapes = known(raw)
        named = guess(raw, shapes, f"my_{raw['model_type']}")
        nameless = guess(raw, shapes)
        assert named.config in (cfg, None), path
        if nameless.config not in (cfg, None):
            differing = {
                name for name in vars(cfg) if vars(cfg)[name] != vars(nameless.config)[name]
            }
            assert differing <= MAY_DIFFER, path
            assert "gemma" in raw["model_type"] or "sliding_window" not in raw, path
        alike += named.config == cfg
        refused += named.config is None
    assert alike > 2 * refused > 20


@pytest.mark.skipif(not genuine(), reason=f"no published configs in {CONFIGS}")
@pytest.mark.parametrize(
    "model",
    [
        "llama/llama3_2_1b",
        "mistral/mistralai__mistral-7b-v0.1",
        "qwen2/qwen2_7b",
        "phi3/microsoft__phi-4-mini-instruct",
        "starcoder2/starcoder2",
        "gpt2/gpt2",
        "gpt_neox/eleutherai__pythia-6.9b-deduped",
        "qwen3/qwen3_0.6b",
        "olmo2/olmo2_7b",
        "internlm2/internlm2_5_7b",
        "stablelm/stablelm",
        "falcon/tiiuae__falcon-7b",
        "gpt_bigcode/gpt_bigcode",
    ],
)
def test_real_models_are_reproduced(model: str) -> None:
    raw = json.loads((CONFIGS / f"{model}.json").read_text(encoding="utf-8"))
    cfg, shapes = known(raw)
    assert guess(raw, shapes).config == cfg


def test_prefixes_do_not_matter() -> None:
    cfg, shapes = known(tiny_raw("llama"))
    for old, new in (("model.layers", "decoder.blocks"), ("model.", ""), ("model.", "a.b.c.")):
        moved = {name.replace(old, new): shape for name, shape in shapes.items()}
        found = guess(tiny_raw("llama"), moved)
        assert found.config == cfg, found.issues
        plan = found.family.place(cfg, parameter_shapes(cfg), list(moved))
        assert {name for p in plan.placements for name in p.theirs} == set(moved)


def without(shapes: Shapes, *parts: str) -> Shapes:
    return {name: s for name, s in shapes.items() if not any(part in name for part in parts)}


def layers(cfg: TransformerConfig, suffix: str, *shape: int) -> Shapes:
    return {f"model.layers.{i}.{suffix}": shape for i in range(cfg.num_layers)}


EPS = {"rms_norm_eps": 1e-5, "hidden_act": "silu"}
PLAIN = {"attention_bias": None, "mlp_bias": None}


def test_tensors_decide_biases() -> None:
    cfg, shapes = known(tiny_raw("llama", **EPS))
    raw = tiny_raw("llama", **EPS, **PLAIN)
    found = guess(
        raw, without(shapes, "o_proj.bias", "mlp.up_proj.bias", "gate_proj.bias", "down_proj.bias")
    ).config
    assert found is not None
    assert (found.qkv_bias, found.o_proj_bias, found.mlp_bias) == (True, False, False)
    assert guess(raw, shapes).config == cfg
    # a key that is contradicted by the tensors is not overruled
    wrong = guess({**raw, "mlp_bias": False}, shapes)
    assert any("mlp.up_proj.bias" in issue for issue in wrong.issues), wrong.issues


def test_tensors_decide_norms_of_queries_and_keys() -> None:
    base = {**EPS, **PLAIN}
    cfg, shapes = known(tiny_raw("llama", **base))
    sizes = (cfg.head_dim, cfg.num_attention_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim)
    for q, k, over in ((sizes[0], sizes[0], Over.Head), (sizes[1], sizes[2], Over.Whole)):
        extra = layers(cfg, "self_attn.q_norm.weight", q) | layers(
            cfg, "self_attn.k_norm.weight", k
        )
        found = guess(tiny_raw("llama", **base), {**shapes, **extra})
        assert found.config is not None, found.issues
        assert isinstance(found.config.qk_norm, QkNorm)
        assert found.config.qk_norm.over is over


def test_tensors_decide_where_norms_stand() -> None:
    base = {**EPS, **PLAIN}
    cfg, shapes = known(tiny_raw("llama", **base))
    width = cfg.hidden_size
    more = {
        name: shape
        for part in ("pre_feedforward_layernorm", "post_feedforward_layernorm")
        for name, shape in layers(cfg, f"{part}.weight", width).items()
    }
    sandwich = guess(tiny_raw("llama", **base), {**shapes, **more})
    assert sandwich.config is None  # these are Gemma's names, and its norms are of another kind
    assert "its names are those of gemma" in sandwich.issues[0]
    single = guess(tiny_raw("llama", **base), without(shapes, "post_attention_layernorm"))
    assert single.config is not None
    assert single.config.layout is BlockLayout.Parallel
    biased = {n.replace("weight", "bias"): s for n, s in shapes.items() if "norm" in n}
    layered = guess(tiny_raw("llama", **base), {**shapes, **biased})
    assert layered.config is not None
    assert layered.config.norm_type is NormType.Layer


def test_tensors_decide_tying_and_gates() -> None:
    base = {**EPS, **PLAIN}
    cfg, shapes = known(tiny_raw("llama", **base))
    assert not cfg.tie_word_embeddings
    tied = guess(tiny_raw("llama", **base), without(shapes, "lm_head"))
    assert tied.config is not None
    assert tied.config.tie_word_embeddings
    untied = guess(tiny_raw("llama", **base, tie_word_embeddings=False), without(shapes, "lm_head"))
    assert any("expected lm_head (weight)" in issue for issue in untied.issues)
    plain = guess(tiny_raw("llama", **base), without(shapes, "gate_proj"))
    assert plain.config is not None
    assert not plain.config.gated_mlp


def test_keys_of_other_families_mean_what_they_mean_there() -> None:
    base = {**EPS, **PLAIN}
    _, shapes = known(tiny_raw("llama", **base))
    more = {
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.5,
        "clip_qkv": 2.0,
        "logit_scale": 4.0,
    }
    found = guess(tiny_raw("llama", **base, **more), shapes)
    assert found.config is not None, found.issues
    assert found.config.attn_scales == (0.3,) * 3
    assert found.config.residual_scale == 0.5
    assert found.config.clip_qkv == 2.0
    assert found.config.head.scale == 4.0
    part = guess(tiny_raw("llama", **base, partial_rotary_factor=0.6), shapes)
    assert part.config is not None, part.issues
    assert {rope.dim for rope in part.config.ropes if rope} == {6}
    respelt = {**tiny_raw("llama", **base), "n_layer": 3, "n_head": 6}
    del respelt["num_hidden_layers"], respelt["num_attention_heads"]
    assert guess(respelt, shapes).config == guess(tiny_raw("llama", **base), shapes).config


REFUSED: dict[str, tuple[Raw, str]] = {
    "a key": ({"mystery": 1}, "config.json has mystery = 1, which has no meaning here"),
    "a switch": ({"use_sinks": True}, "use_sinks = True"),
    "an activation": ({"hidden_act": "xielu"}, "activation 'xielu' is not modelled"),
    "a rotary embedding": ({"rope_scaling": {"type": "yarm"}}, "'yarm' is not modelled"),
    "kinds of layers": ({"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
    "a missing size": ({"hidden_size": None}, "lacks 'hidden_size'"),
    "a wrong size": ({"hidden_size": 30}, "has the shape"),
    "gemma's keys": ({"query_pre_attn_scalar": 8}, "hints at gemma"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_explained_is_refused(what: str) -> None:
    more, message = REFUSED[what]
    _, shapes = known(tiny_raw("llama"))
    found = guess({**tiny_raw("llama"), **more}, shapes)
    assert found.config is None
    assert any(message in issue for issue in found.issues), found.issues


def test_tensors_without_meaning_are_refused() -> None:
    cfg, shapes = known(tiny_raw("llama"))
    found = guess(tiny_raw("llama"), {**shapes, **layers(cfg, "self_attn.sinks", 6)})
    assert found.issues == ("model.layers.*.self_attn.sinks [6], 3 times has no meaning here",)
    other = {name.replace("self_attn", "mixer"): shape for name, shape in shapes.items()}
    issues = guess(tiny_raw("llama"), other).issues
    assert "model.layers.*.mixer.q_proj.weight [60, 24], 3 times has no meaning here" in issues
    assert any("expected model.layers.*.self_attn.q_proj (weight and bias)" in i for i in issues)


def test_buffers_are_passed_over() -> None:
    for family, buffer in {
        "llama": "self_attn.rotary_emb.inv_freq",
        "gpt2": "attn.masked_bias",
    }.items():
        cfg, shapes = known(tiny_raw(family))
        prefix = {"llama": "model.layers", "gpt2": "transformer.h"}[family]
        extra: Shapes = {f"{prefix}.{i}.{buffer}": (5,) for i in range(3)}
        found = guess(tiny_raw(family), {**shapes, **extra})
        assert found.config == cfg, found.issues
        plan = found.family.place(cfg, parameter_shapes(cfg), [*shapes, *extra])
        assert plan.ignored == tuple(extra)


def test_provenance_and_training_are_inert() -> None:
    cfg, shapes = known(tiny_raw("llama"))
    more = {
        "transformers_version": "5.0",
        "attention_dropout": 0.1,
        "image_token_id": 7,
        "z_loss": 1.0,
        "_name_or_path": "x",
    }
    assert guess({**tiny_raw("llama"), **more}, shapes).config == cfg


def save(folder: Path, raw: Raw, shapes: Shapes) -> Path:
    folder.mkdir()
    dice = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {n: torch.randn(s, generator=dice) for n, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def test_an_unknown_type_loads_and_computes_what_the_family_does(tmp_path: Path) -> None:
    raw = tiny_raw("qwen3")
    _, shapes = known(raw)
    twin = MIModel.from_pretrained(save(tmp_path / "qwen3", raw, shapes))
    other = MIModel.from_pretrained(save(tmp_path / "zebra", {**raw, "model_type": "z"}, shapes))
    tokens = testing.random_tokens(twin)
    assert torch.equal(other.forward(tokens).output, twin.forward(tokens).output)
    assert other.origin.family == "z"
    assert other.origin.assumed[0] == "it is read like qwen3"
    assert "z, inferred" in repr(other)
    assert not twin.origin.assumed


def test_the_report_of_a_good_model(tmp_path: Path) -> None:
    raw = tiny_raw("qwen3")
    cfg, shapes = known(raw)
    report = check(save(tmp_path / "zebra", {**raw, "model_type": "z"}, shapes))
    assert report.compatible
    assert (report.model_type, report.read_like, report.inferred) == ("z", "qwen3", True)
    total = sum(torch.Size(shape).numel() for shape in parameter_shapes(cfg).values())
    assert report.parameters == total
    assert UNSEEN in report.assumptions
    report.into_result()
    assert CompatibilityReport.load(report.save(tmp_path / "report.json")) == report
    assert "can be loaded" in repr(report)
    known_one = check(save(tmp_path / "known", raw, shapes))
    assert (known_one.inferred, known_one.assumptions, known_one.issues) == (False, (), ())


def test_the_report_of_a_known_family_that_lacks_a_tensor(tmp_path: Path) -> None:
    raw = tiny_raw("llama")
    _, shapes = known(raw)
    del shapes["model.layers.1.self_attn.q_proj.weight"]
    shapes["score.weight"] = (2, 24)
    report = check(save(tmp_path / "broken", raw, shapes))
    assert report.issues == (
        "expected model.layers.1.self_attn.q_proj.weight, which is not there",
        "score.weight [2, 24] has no meaning here: it is the head of a classifier",
    )
    with pytest.raises(ConfigError, match="not compatible with the transformer here:\n- expected"):
        report.into_result()


def test_the_report_says_whose_names_these_are() -> None:
    raw = tiny_raw("llama")
    _, pythia = known(tiny_raw("gpt_neox"))
    found = diagnose(raw, pythia, measured)
    text = "\n".join(found.issues)
    assert found.naming == "gpt_neox"
    assert "expected model.embed_tokens (weight), which is not there" in text
    assert "there is gpt_neox.layers.*.input_layernorm" in text
    assert "its layers are called gpt_neox.layers.*; those of llama are model.layers.*" in text
    assert "100% of the kinds of tensors are named as in gpt_neox (gpt_neox.layers.*)" in text
    strange = diagnose(raw, {"a.0.b.weight": (1,), "c": (2,)}, measured)
    assert "its naming scheme is unknown: the first tensors are a.0.b.weight, c" in "\n".join(
        strange.issues
    )


def test_the_report_lists_everything_that_is_wrong_with_a_config() -> None:
    raw = tiny_raw("llama", hidden_act="xielu", mystery=1, rope_interleaved=True)
    _, shapes = known(tiny_raw("llama"))
    issues = "\n".join(diagnose(raw, shapes, measured).issues)
    for part in (
        "'xielu' is not modelled",
        "mystery = 1, which has no meaning in llama",
        "rope_interleaved = True is not modelled",
    ):
        assert part in issues
    misfit = diagnose({**tiny_raw("llama"), "vocab_size": 98}, shapes, measured).issues
    assert misfit == (
        "model.embed_tokens.weight has the shape [97, 24]; config.json makes it [98, 24]",
        "lm_head.weight has the shape [97, 24]; config.json makes it [98, 24]",
    )
