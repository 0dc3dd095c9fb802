# SPDX-License-Identifier: MIT OR Apache-2.0
"""What configs of the later dense families mean to transformers, field by field."""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers.activations import ACT2FN

from tests.parity.published import FULL, SLIDING, Raw
from tests.parity.test_configs import built
from torch_mi.backends.transformer import parameter_shapes
from torch_mi.config.parts import BlockLayout, NormType, Over, QkNorm
from torch_mi.config.rope import Rope
from torch_mi.config.transformer import TransformerConfig
from torch_mi.families import read_config
from torch_mi.nn.rotary import Rotary

PER_HEAD = QkNorm(NormType.Rms, Over.Head)
EACH_HEAD = QkNorm(NormType.LayerGain, Over.EachHead)
WHOLE = QkNorm(NormType.RmsFloat, Over.Whole)


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
