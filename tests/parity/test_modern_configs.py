# SPDX-License-Identifier: MIT OR Apache-2.0
"""Configs of the later dense families mean to us what they mean to transformers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.activations import ACT2FN

from tests.parity.published import FULL, PUBLISHED, SLIDING, Raw
from tests.parity.test_configs import ACTS, CONFIGS, ROPES, SMALL, built, reference, scarcely
from torch_mi.backends.transformer import parameter_shapes
from torch_mi.config.activation import Activation
from torch_mi.config.parts import BlockLayout, NormType, Over, QkNorm
from torch_mi.config.rope import DynamicNtk, Linear, Llama3, Rope, Yarn
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError, MIError, ModelError
from torch_mi.families import FAMILIES, read_config
from torch_mi.families.gemma3 import GEMMAS
from torch_mi.families.modern import MODERN
from torch_mi.nn.rotary import Rotary

HERE = tuple(family.model_type for family in (*MODERN, *GEMMAS))
SHARED = ("qwen3", "gemma3", "cohere", "olmo2", "stablelm")
"""Folders of genuine files."""

PER_HEAD = QkNorm(NormType.Rms, Over.Head)
EACH_HEAD = QkNorm(NormType.LayerGain, Over.EachHead)
WHOLE = QkNorm(NormType.RmsFloat, Over.Whole)


def genuine() -> dict[str, Raw]:
    """Published configs: files, as first released and as transformers 5 rewrites them, and ours."""
    files = [
        path
        for family in SHARED
        for folder in (CONFIGS / family, CONFIGS / "transformers5" / family)
        for path in sorted(folder.glob("*.json"))
    ]
    read = {str(path): json.loads(path.read_text(encoding="utf-8")) for path in files}
    return {**PUBLISHED, **read}


def published(name: str) -> TransformerConfig:
    """What we make of one of them."""
    if name in PUBLISHED:
        return read_config(PUBLISHED[name])[1]
    path = CONFIGS / name
    if not path.exists():
        pytest.skip(f"no published configs in {CONFIGS}")
    return read_config(json.loads(path.read_text(encoding="utf-8")))[1]


def turning_layers(hf: Any) -> list[bool]:
    """Which layers of a model of transformers turn."""
    layers = range(hf.num_hidden_layers)
    match hf.model_type:
        case "smollm3":
            return [bool(hf.no_rope_layers[i]) for i in layers]
        case "cohere2":
            return [hf.layer_types[i] == SLIDING for i in layers]
        case "exaone4":
            return [hf.sliding_window is None or hf.layer_types[i] == SLIDING for i in layers]
        case _:
            return [True for _ in layers]


def windows(hf: Any) -> tuple[int | None, ...]:
    """What the models of transformers mask by."""
    kinds = hf.to_dict().get("layer_types") or [FULL] * hf.num_hidden_layers
    return tuple(hf.sliding_window if kind == SLIDING else None for kind in kinds)


Expected = dict[str, object]


def unless_one(value: float) -> float | None:
    return None if value == 1 else value


def rms(_: Any) -> Expected:
    return {}


def gemma3(hf: Any) -> Expected:
    cap = hf.final_logit_softcapping
    return {
        "norm_type": NormType.RmsPlusOne,
        "layout": BlockLayout.Sandwich,
        "qk_norm": QkNorm(NormType.RmsPlusOne, Over.Head),
        "attn_scales": (hf.query_pre_attn_scalar**-0.5,) * hf.num_hidden_layers,
        "embedding_scale": math.sqrt(hf.hidden_size),
        "final_logit_softcapping": cap,
        "act": hf.hidden_activation,
    }


def granite(hf: Any) -> Expected:
    return {
        "attn_scales": (hf.attention_multiplier,) * hf.num_hidden_layers,
        "embedding_scale": unless_one(hf.embedding_multiplier),
        "residual_scale": unless_one(hf.residual_multiplier),
        "head_scale": unless_one(1 / hf.logits_scaling),
    }


def cohere(hf: Any) -> Expected:
    normed = hf.to_dict().get("use_qk_norm")
    return {
        "norm_type": NormType.LayerGain,
        "norm_eps": hf.layer_norm_eps,
        "layout": BlockLayout.Parallel,
        "qk_norm": EACH_HEAD if normed else None,
        "head_scale": unless_one(hf.logit_scale),
    }


def stablelm(hf: Any) -> Expected:
    return {
        "norm_type": NormType.Layer,
        "norm_eps": hf.layer_norm_eps,
        "layout": BlockLayout.Parallel if hf.use_parallel_residual else BlockLayout.Pre,
        "qk_norm": EACH_HEAD if hf.qk_layernorm else None,
    }


def olmo(hf: Any) -> Expected:
    return {"norm_type": NormType.LayerBare, "norm_eps": 1e-5, "clip_qkv": hf.clip_qkv}


def olmo2(_: Any) -> Expected:
    return {"norm_type": NormType.RmsFloat, "layout": BlockLayout.Post, "qk_norm": WHOLE}


EXPECTED: dict[str, Callable[[Any], Expected]] = {
    "qwen3": lambda _: {"qk_norm": PER_HEAD},
    "smollm3": rms,
    "granite": granite,
    "cohere": cohere,
    "cohere2": cohere,
    "olmo": olmo,
    "olmo2": olmo2,
    "olmo3": olmo2,
    "exaone4": lambda _: {"layout": BlockLayout.Post, "qk_norm": PER_HEAD},
    "stablelm": stablelm,
    "gemma3_text": gemma3,
}


def same_arithmetic(cfg: TransformerConfig, hf: Any) -> None:
    """Field by field, against the attributes that transformers' models read."""
    if hf.model_type == "gemma3":
        assert cfg.tie_word_embeddings == hf.tie_word_embeddings
        hf, tied = hf.text_config, hf.tie_word_embeddings
        hf.tie_word_embeddings = tied
    layers, said = hf.num_hidden_layers, hf.to_dict()
    dim = said.get("head_dim") or hf.hidden_size // hf.num_attention_heads
    wanted: Expected = {
        "hidden_size": hf.hidden_size,
        "num_layers": layers,
        "num_attention_heads": hf.num_attention_heads,
        "num_kv_heads": hf.num_key_value_heads,
        "head_dim": dim,
        "intermediate_size": hf.intermediate_size,
        "vocab_size": hf.vocab_size,
        "max_position_embeddings": hf.max_position_embeddings,
        "embedding_scale": None,
        "embedding.learned": None,
        "layout": BlockLayout.Pre,
        "norm_type": NormType.Rms,
        "norm_eps": said.get("rms_norm_eps"),
        "gated_mlp": True,
        "causal": True,
        "alibi": None,
        "windows": windows(hf),
        "attn_scales": (dim**-0.5,) * layers,
        "attn_logit_softcapping": None,
        "qk_norm": None,
        "clip_qkv": None,
        "residual_scale": None,
        "head_scale": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": hf.tie_word_embeddings,
        "act": said.get("hidden_act"),
        **EXPECTED[hf.model_type](hf),
    }
    act = ACT2FN[wanted.pop("act")]
    assert cfg.embedding.learned is wanted.pop("embedding.learned")
    assert cfg.head.scale == wanted.pop("head_scale")
    found = {name: getattr(cfg, name) for name in wanted}
    assert found == wanted
    x = torch.linspace(-4, 4, 201)
    torch.testing.assert_close(cfg.activation.function(x), act(x), atol=1e-6, rtol=1e-6)
    same_turning(cfg, hf)


def same_turning(cfg: TransformerConfig, hf: Any) -> None:
    """Which layers turn, and how, near the start and beyond the original context."""
    turns = turning_layers(hf)
    assert [rope is not None for rope in cfg.ropes] == turns
    by_kind = hf.model_type in {"olmo3", "gemma3_text"}
    module = rotary(hf)
    for rope in dict.fromkeys(cfg.ropes):
        layer = cfg.ropes.index(rope)
        kind = (hf.layer_types[layer],) if by_kind else ()
        for position in (3, 5000, 150_000):
            if rope is not None:
                positions = torch.tensor([[position]])
                cos, sin = module(torch.zeros(1), positions, *kind)
                same_tables(rope, cfg.head_dim, positions, (cos, sin))


def rotary(hf: Any) -> Any:
    """The rotary module of a model of transformers."""
    name = hf.model_type.removesuffix("_text")
    module = __import__(f"transformers.models.{name}.modeling_{name}", fromlist=["x"])
    classes = [value for key, value in vars(module).items() if key.endswith("RotaryEmbedding")]
    return next(each for each in classes if each.__name__.lower().startswith(name))(hf)


def same_tables(rope: Rope, head_dim: int, positions: torch.Tensor, wanted: Any) -> None:
    """Cosines, and the sines of the second of each pair."""
    cos, sin = (table[:, :, 0] for table in Rotary(rope, head_dim).tables(positions))
    dim = wanted[0].shape[-1]
    assert dim == rope.dim
    second = slice(1, dim, 2) if rope.interleaved else slice(dim // 2, dim)
    torch.testing.assert_close(cos[..., :dim], wanted[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(sin[..., second], wanted[1][..., second], atol=1e-6, rtol=0)


def same_tensors(raw: Raw) -> None:
    """Every tensor of the reference has one place, and every parameter of ours its sources."""
    family, cfg = read_config(raw)
    theirs = {name: tuple(t.shape) for name, t in built(raw).state_dict().items()}
    shapes = parameter_shapes(cfg)
    plan = family.place(cfg, shapes, theirs)
    assert {p.ours: p.shape for p in plan.placements} == shapes
    used = [name for p in plan.placements for name in p.theirs]
    assert len(used) == len(set(used))
    for p in plan.placements:
        assert {theirs[name] for name in p.theirs} == {p.stored}
        assert len(p.theirs) * math.prod(p.stored) == math.prod(p.shape)
    assert set(plan.duplicates) == ({"lm_head.weight"} if cfg.tie_word_embeddings else set())
    assert all("vision_tower" in name or "projector" in name for name in plan.ignored)
    assert {*used, *plan.duplicates, *plan.ignored} == set(theirs)


def test_published_configs_mean_what_they_mean_to_transformers() -> None:
    for name, raw in genuine().items():
        try:
            same_arithmetic(read_config(raw)[1], reference(raw))
        except (AssertionError, MIError) as error:
            error.add_note(name)
            raise


def test_published_configs_survive_being_rewritten() -> None:
    for name, raw in genuine().items():
        rewritten = json.loads(reference(raw).to_json_string(use_diff=True))
        full = json.loads(reference(raw).to_json_string(use_diff=False))
        assert read_config(rewritten)[1] == read_config(raw)[1] == read_config(full)[1], name


ONE_EACH = ("OLMo-1B", "Olmo-3-7B", "SmolLM3-3B", "granite-3.1-2b", "EXAONE-4.0-1.2B")
FEWER = ("command-r-plus", "command-r7b", "gemma-3-4b")


@pytest.mark.parametrize("name", [*ONE_EACH, *FEWER])
def test_every_tensor_of_a_published_model_has_one_place(name: str) -> None:
    same_tensors(PUBLISHED[name])


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_qwen_3_8b(era: str) -> None:
    cfg = published(f"{era}qwen3/qwen__qwen3-8b.json")
    assert (cfg.num_layers, cfg.num_attention_heads, cfg.num_kv_heads) == (36, 32, 8)
    assert (cfg.head_dim, cfg.hidden_size, cfg.intermediate_size) == (128, 4096, 12288)
    assert cfg.qk_norm == QkNorm(NormType.Rms, Over.Head)
    assert cfg.ropes == (Rope(1e6, 128),) * 36
    assert cfg.windows == (None,) * 36
    assert (cfg.qkv_bias, cfg.o_proj_bias, cfg.mlp_bias) == (False, False, False)
    assert not cfg.tie_word_embeddings


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_gemma_3_1b(era: str) -> None:
    cfg = published(f"{era}gemma3/google__gemma-3-1b-it.json")
    local, whole = Rope(1e4, 256), Rope(1e6, 256)
    assert cfg.ropes == ((local,) * 5 + (whole,)) * 4 + (local,) * 2
    assert cfg.windows == ((512,) * 5 + (None,)) * 4 + (512,) * 2
    assert cfg.qk_norm == QkNorm(NormType.RmsPlusOne, Over.Head)
    assert cfg.layout is BlockLayout.Sandwich
    assert cfg.norm_type is NormType.RmsPlusOne
    assert cfg.attn_scales == (1 / 16,) * 26
    assert cfg.embedding_scale == 1152**0.5
    assert (cfg.attn_logit_softcapping, cfg.final_logit_softcapping) == (None, None)
    assert cfg.activation is Activation.GeluTanh
    assert cfg.tie_word_embeddings


def test_gemma_3_with_images() -> None:
    cfg = published("gemma-3-4b")
    assert (cfg.num_layers, cfg.num_attention_heads, cfg.num_kv_heads) == (34, 8, 4)
    assert (cfg.head_dim, cfg.hidden_size, cfg.vocab_size) == (256, 2560, 262_208)
    assert cfg.max_position_embeddings == 131_072
    assert cfg.ropes[4:7] == (Rope(1e4, 256), Rope(1e6, 256, Linear(8.0)), Rope(1e4, 256))
    assert cfg.windows[4:7] == (1024, None, 1024)
    assert cfg.tie_word_embeddings
    large = published("gemma-3-27b")
    assert large.attn_scales == (168**-0.5,) * 62
    assert (large.num_kv_heads, large.head_dim) == (16, 128)


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_olmo_2(era: str) -> None:
    cfg = published(f"{era}olmo2/olmo2_32b.json")
    assert (cfg.num_layers, cfg.num_attention_heads, cfg.num_kv_heads) == (64, 40, 8)
    assert cfg.layout is BlockLayout.Post
    assert cfg.norm_type is NormType.RmsFloat
    assert cfg.norm_eps == 1e-6
    assert cfg.qk_norm == QkNorm(NormType.RmsFloat, Over.Whole)
    assert cfg.ropes == (Rope(5e5, 128),) * 64


def test_olmo_and_olmo_3() -> None:
    cfg = published("OLMo-7B-0424")
    assert cfg.norm_type is NormType.LayerBare
    assert (cfg.norm_eps, cfg.clip_qkv) == (1e-5, 8.0)
    assert published("OLMo-1B").clip_qkv is None
    assert published("OLMo-1B").tie_word_embeddings
    third = published("Olmo-3-7B")
    assert third.windows == (4096, 4096, 4096, None) * 8
    yarn = Yarn(8.0, 8192, 1.2079441541679836, 32.0, 1.0, truncate=True)
    assert third.ropes == ((Rope(5e5, 128),) * 3 + (Rope(5e5, 128, yarn),)) * 8


def test_smollm3_and_granite() -> None:
    cfg = published("SmolLM3-3B")
    assert cfg.ropes == (*(Rope(5e6, 128),) * 3, None) * 9
    assert cfg.windows == (None,) * 36
    assert (cfg.num_kv_heads, cfg.tie_word_embeddings) == (4, True)
    granite = published("granite-3.1-2b")
    assert granite.attn_scales == (0.015625,) * 40
    assert (granite.embedding_scale, granite.residual_scale) == (12.0, 0.22)
    assert granite.head.scale == 0.125
    assert granite.ropes == (Rope(5e6, 64),) * 40


def test_cohere() -> None:
    cfg = published("cohere/aya-23.json")
    assert cfg.layout is BlockLayout.Parallel
    assert cfg.norm_type is NormType.LayerGain
    assert cfg.ropes == (Rope(1e4, 128, interleaved=True),) * 32
    assert (cfg.head.scale, cfg.qk_norm, cfg.norm_eps) == (0.0625, None, 1e-5)
    assert cfg.tie_word_embeddings
    plus = published("command-r-plus")
    assert plus.qk_norm == QkNorm(NormType.LayerGain, Over.EachHead)
    assert plus.ropes[0] == Rope(75e6, 128, interleaved=True)
    seven = published("command-r7b")
    assert seven.windows == (4096, 4096, 4096, None) * 8
    assert seven.ropes == (*(Rope(5e4, 128, interleaved=True),) * 3, None) * 8
    assert seven.head.scale == 0.25


def test_exaone_4() -> None:
    cfg = published("EXAONE-4.0-1.2B")
    rope = Rope(1e6, 64, Llama3(16.0, 1.0, 4.0, 8192))
    assert cfg.ropes == (rope,) * 30
    assert cfg.windows == (None,) * 30
    assert cfg.layout is BlockLayout.Post
    assert cfg.qk_norm == QkNorm(NormType.Rms, Over.Head)
    large = published("EXAONE-4.0-32B")
    assert large.windows == (4096, 4096, 4096, None) * 16
    assert [rope is None for rope in large.ropes] == [False, False, False, True] * 16


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_stablelm(era: str) -> None:
    cfg = published(f"{era}stablelm/stablelm-2-zephyr-1_6b.json")
    assert cfg.norm_type is NormType.Layer
    assert cfg.ropes == (Rope(1e4, 16),) * 24
    assert (cfg.qkv_bias, cfg.o_proj_bias, cfg.mlp_bias) == (True, False, False)
    assert (cfg.layout, cfg.qk_norm) == (BlockLayout.Pre, None)
    assert not published(f"{era}stablelm/stablelm.json").qkv_bias


def test_internlm() -> None:
    second = published("internlm2/internlm2_5_7b.json")
    assert (second.num_attention_heads, second.num_kv_heads, second.head_dim) == (32, 8, 128)
    assert second.ropes == (Rope(1e6, 128, DynamicNtk(2.0, 32768)),) * 32
    assert not second.qkv_bias
    assert published("internlm2/internlm2.json").ropes == (Rope(1e6, 128),) * 32
    first = published("internlm/internlm.json")
    assert first.ropes == (Rope(1e4, 128, DynamicNtk(1.0, 2048)),) * 32
    assert (first.qkv_bias, first.o_proj_bias, first.mlp_bias) == (True, True, False)
    assert first.num_kv_heads == 32


def text_names(layers: int) -> list[str]:
    """The text tensors of Gemma 3, below any module."""
    norms = ["input", "post_attention", "pre_feedforward", "post_feedforward"]
    attn = ["q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"]
    inner = [f"{norm}_layernorm" for norm in norms] + [f"self_attn.{name}" for name in attn]
    inner += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    layered = [f"layers.{i}.{name}.weight" for i in range(layers) for name in inner]
    return ["embed_tokens.weight", "norm.weight", *layered]


@pytest.mark.parametrize(
    ("text", "rest"), [("language_model.model.", ""), ("model.language_model.", "model.")]
)
def test_images_are_passed_over_and_said_to_be(text: str, rest: str) -> None:
    family, cfg = read_config(PUBLISHED["gemma-3-4b"])
    images = [
        f"{rest}vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        f"{rest}vision_tower.vision_model.embeddings.position_embedding.weight",
        f"{rest}multi_modal_projector.mm_input_projection_weight",
    ]
    names = [f"{text}{name}" for name in text_names(cfg.num_layers)]
    plan = family.place(cfg, parameter_shapes(cfg), [*names, *images])
    assert set(plan.ignored) == set(images)
    assert sorted(name for p in plan.placements for name in p.theirs) == sorted(names)
    with pytest.raises(ModelError, match="1 of the checkpoint's tensors have no place"):
        family.place(cfg, parameter_shapes(cfg), [*names, f"{rest}audio_tower.weight"])


REFUSED: dict[str, tuple[Raw, str]] = {
    "window without a width": (
        {"model_type": "gemma3_text", "sliding_window": None},
        "there is no sliding_window",
    ),
    "pattern of none": (
        {"model_type": "cohere2", "sliding_window_pattern": 0},
        "sliding_window_pattern = 0 is not positive",
    ),
    "flat rotary embedding": (
        {"model_type": "gemma3_text", "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        "by kind of layer has no use for factor",
    ),
    "base for which layers": ({"model_type": "olmo3", "rope_theta": 1e4}, "rope_theta = 10000.0"),
    "too few NoPE layers": (
        {"model_type": "smollm3", "no_rope_layers": [1, 0]},
        "2 no_rope_layers",
    ),
    "NoPE layers of no kind": (
        {"model_type": "smollm3", "no_rope_layers": [1, 2, 0]},
        "no_rope_layers has 2",
    ),
    "interval of none": (
        {"model_type": "smollm3", "no_rope_layer_interval": 0},
        "no_rope_layer_interval = 0",
    ),
    "division by nothing": ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling = 0"),
    "caps on scores": (
        {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0},
        "attn_logit_softcapping = 50.0",
    ),
    "a key beside the text": (
        {**PUBLISHED["gemma-3-4b"], "hidden_size": 2560},
        "config.json has hidden_size beside text_config",
    ),
    "another text model": (
        {**PUBLISHED["gemma-3-4b"], "text_config": {"model_type": "gemma2"}},
        "text_config has model_type = 'gemma2'",
    ),
    "tied or not": (
        {**PUBLISHED["gemma-3-4b"], "text_config": {"tie_word_embeddings": False}},
        "text_config has tie_word_embeddings = False",
    ),
    "a pattern in letters alone": (
        {"model_type": "exaone4", "sliding_window_pattern": "LLLG"},
        "sliding_window_pattern = 'LLLG' where a whole number",
    ),
    "rotary embedding of another kind": (
        {"model_type": "internlm", "rotary": {"base": 1e4, "type": "spiral"}},
        "type = 'spiral'",
    ),
    "heads of their own width": ({"model_type": "stablelm", "head_dim": 16}, "head_dim = 16"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_meaning_is_refused(what: str) -> None:
    raw, message = REFUSED[what]
    base = {} if raw["model_type"] == "gemma3" else SMALL
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        read_config({**base, "num_key_value_heads": None, **raw} if base else raw)


HEAD: Raw = {"head_dim": st.just(8)}
BIASED: Raw = {"attention_bias": st.booleans()}
EPS: Raw = {"rms_norm_eps": st.floats(1e-7, 1e-4)}
CENTRED_EPS: Raw = {"layer_norm_eps": st.floats(1e-7, 1e-4)}
WINDOW: Raw = {"sliding_window": st.integers(1, 99)}
KINDS: Raw = {"layer_types": st.lists(st.sampled_from([FULL, SLIDING]), min_size=3, max_size=3)}
PATTERN: Raw = {"sliding_window_pattern": st.integers(1, 5)}
TURNS: Raw = {"rope_theta": st.floats(100, 1e6) | st.integers(100, 10**6), "rope_scaling": ROPES}
NEWER = ROPES.map(lambda raw: {"rope_type" if k == "type" else k: v for k, v in raw.items()})
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
    return raw


def test_every_family_is_generated() -> None:
    assert {*KEYS, "gemma3"} == set(HERE)
    assert set(HERE) <= set(FAMILIES)


@pytest.mark.parametrize("family", KEYS)
def test_any_config_means_what_it_means_to_transformers(family: str) -> None:
    @given(configs(family))
    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
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
    @settings(max_examples=20, deadline=None, database=None, derandomize=True)
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
