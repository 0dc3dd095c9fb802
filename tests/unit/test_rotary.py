# SPDX-License-Identifier: MIT OR Apache-2.0
"""Rotary embedding turns by the same angles as transformers' modules, of every kind."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as phi3_apply

from torch_mi.config.rope import Rope
from torch_mi.config.transformer import TransformerConfig
from torch_mi.families import read_config
from torch_mi.nn.rotary import Rotary

CONTEXT = 64
HEAD = 32
SIZES: dict[str, Any] = {
    "hidden_size": 4 * HEAD,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
    "vocab_size": 8,
    "max_position_embeddings": 4 * CONTEXT,
}

LLAMA_KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "dynamic, whole factor": {"rope_type": "dynamic", "factor": 2, "rope_theta": 1e6},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT},
    "yarn, no context": {"rope_type": "yarn", "factor": 4.0},
    "yarn, no factor": {
        "rope_type": "yarn",
        "factor": None,
        "original_max_position_embeddings": CONTEXT,
    },
    "yarn, mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": CONTEXT,
        "mscale": 0.707,
        "mscale_all_dim": 1.5,
        "beta_fast": 16,
        "beta_slow": 2.0,
    },
    "yarn, one mscale": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": CONTEXT,
        "mscale": 0.7,
    },
    "yarn, given": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": CONTEXT,
        "attention_factor": 0.8,
        "truncate": False,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": CONTEXT,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1 + i / 10 for i in range(HEAD // 2)],
        "long_factor": [2.0 + i for i in range(HEAD // 2)],
        "original_max_position_embeddings": CONTEXT,
    },
    "longrope, given": {
        "rope_type": "longrope",
        "short_factor": [1] * (HEAD // 2),
        "long_factor": [2.0 + i for i in range(HEAD // 2)],
        "original_max_position_embeddings": CONTEXT,
        "factor": 16.0,
    },
}

LENGTHS = [1, 7, CONTEXT, CONTEXT + 1, 4 * CONTEXT, 4 * CONTEXT + 1, 1000]


def rope_of(cfg: TransformerConfig) -> Rope:
    """What turns the first layer."""
    assert cfg.ropes[0] is not None
    return cfg.ropes[0]


def positions_up_to(length: int) -> Tensor:
    """Two rows: one from the start, one that ends earlier and starts with padding."""
    first = torch.arange(length)
    return torch.stack([first, (first - length // 3).clamp(min=0)])


def agree(ours: Rotary, theirs: tuple[Tensor, Tensor], x: Tensor, positions: Tensor) -> None:
    """Whether `x` turns into the same as by the reference's cosines and sines."""
    cos, sin = theirs
    dim = cos.shape[-1]
    turned = ours.apply_to(x, *ours.tables(positions))
    reference, _ = phi3_apply(x, x, cos, sin, unsqueeze_dim=2)
    torch.testing.assert_close(turned, reference, atol=2e-6, rtol=0)
    cosines, sines = ours.tables(positions)
    torch.testing.assert_close(cosines[:, :, 0, :dim], cos, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        sines[:, :, 0, dim // 2 : dim], sin[..., dim // 2 :], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", LLAMA_KINDS)
def test_angles_are_those_of_transformers(kind: str, length: int) -> None:
    raw = {"model_type": "llama", **SIZES, "rope_parameters": LLAMA_KINDS[kind]}
    _, cfg = read_config(raw)
    positions = positions_up_to(length)
    x = torch.randn(2, length, 4, HEAD, generator=torch.Generator().manual_seed(length))
    reference = LlamaRotaryEmbedding(LlamaConfig(**SIZES, rope_parameters=dict(LLAMA_KINDS[kind])))
    theirs = reference(x, positions)
    agree(Rotary(rope_of(cfg), cfg.head_dim), theirs, x, positions)
    assert apply_rotary_pos_emb(x, x, *theirs, unsqueeze_dim=2)[0].shape == x.shape


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("part", [1.0, 0.75, 0.25])
@pytest.mark.parametrize("kind", ["default", "longrope", "su"])
def test_partly_turned_heads_are_those_of_transformers(kind: str, part: float, length: int) -> None:
    half = int(HEAD * part) // 2
    scaling: dict[str, Any] | None = None
    if kind != "default":
        scaling = {"type": kind, "short_factor": [1.5] * half, "long_factor": [2.0] * half}
    raw: dict[str, Any] = {
        **SIZES,
        "rope_theta": 123.0,
        "rope_scaling": scaling,
        "original_max_position_embeddings": CONTEXT,
        "partial_rotary_factor": part,
    }
    _, cfg = read_config({"model_type": "phi3", **raw})
    assert rope_of(cfg).dim == 2 * half
    positions = positions_up_to(length)
    x = torch.randn(2, length, 4, HEAD, generator=torch.Generator().manual_seed(length))
    if scaling is not None:
        scaling["type"] = "longrope"  # what "su" has always meant; transformers 5 stumbles on it
    theirs = Phi3RotaryEmbedding(Phi3Config(**raw, pad_token_id=0))(x, positions)
    ours = Rotary(rope_of(cfg), cfg.head_dim)
    agree(ours, theirs, x, positions)
    turned = ours.apply_to(x, *ours.tables(positions))
    assert torch.equal(turned[..., 2 * half :], x[..., 2 * half :])


@pytest.mark.parametrize("kind", ["default", "yarn", "longrope", "dynamic"])
def test_low_precision_rounds_only_the_finished_tables(kind: str) -> None:
    raw = {"model_type": "llama", **SIZES, "rope_parameters": LLAMA_KINDS[kind]}
    _, cfg = read_config(raw)
    positions = torch.arange(900, 1000)[None]
    x = torch.zeros(1, 100, 4, HEAD, dtype=torch.bfloat16)
    reference = LlamaRotaryEmbedding(LlamaConfig(**SIZES, rope_parameters=dict(LLAMA_KINDS[kind])))
    cos, sin = reference(x, positions)
    cosines, sines = Rotary(rope_of(cfg), cfg.head_dim).tables(positions, torch.bfloat16)
    assert cosines.dtype == sines.dtype == torch.bfloat16
    assert torch.equal(cosines[:, :, 0], cos)
    assert torch.equal(sines[:, :, 0, HEAD // 2 :], sin[..., HEAD // 2 :])


def rotary(kind: str) -> Rotary:
    raw = {"model_type": "llama", **SIZES, "rope_parameters": LLAMA_KINDS[kind]}
    _, cfg = read_config(raw)
    return Rotary(rope_of(cfg), cfg.head_dim)


@pytest.mark.parametrize("kind", LLAMA_KINDS)
def test_the_query_of_length_dependence_tells_the_truth(kind: str) -> None:
    rope = rotary(kind)
    lengths = [1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 4 * CONTEXT, 4 * CONTEXT + 1, 300]
    for before in lengths:
        for total in (n for n in lengths if n >= before):
            alone = rope.tables(torch.arange(before)[None])
            within = [t[:, :before] for t in rope.tables(torch.arange(total)[None])]
            differs = any(not torch.equal(a, b) for a, b in zip(alone, within, strict=True))
            # a single position 0 is never turned, whatever the frequencies
            if before > 1:
                assert rope.depends_on_length(before, total) == differs, (before, total)


@pytest.mark.parametrize("kind", LLAMA_KINDS)
def test_it_owns_nothing_and_survives_being_built_without_memory(kind: str) -> None:
    positions = torch.arange(10)[None]
    plain = rotary(kind)
    with torch.device("meta"):
        built = rotary(kind)
    assert not built.state_dict()
    assert not list(built.buffers())
    for ours, theirs in zip(built.tables(positions), plain.tables(positions), strict=True):
        assert torch.equal(ours, theirs)
    cos, sin = built.tables(positions.to("meta"))
    assert cos.device.type == sin.device.type == "meta"
    assert cos.shape == (1, 10, 1, HEAD)


def test_turning_keeps_lengths_and_relative_angles() -> None:
    rope = Rotary(Rope(theta=100.0, dim=16), head_dim=16)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    at = {n: rope.tables(torch.tensor([[n]])) for n in (0, 3, 50, 53)}
    torch.testing.assert_close(rope.apply_to(q, *at[0]), q)
    torch.testing.assert_close(rope.apply_to(q, *at[50]).norm(), q.norm())
    near = (rope.apply_to(q, *at[3]) * rope.apply_to(k, *at[0])).sum()
    far = (rope.apply_to(q, *at[53]) * rope.apply_to(k, *at[50])).sum()
    torch.testing.assert_close(near, far, atol=1e-5, rtol=0)


def test_turning_writes_nothing_in_place_and_has_a_gradient() -> None:
    rope = Rotary(Rope(theta=100.0, dim=8), head_dim=12)
    x = torch.randn(2, 3, 1, 12, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    cos, sin = rope.tables(torch.arange(3)[None], torch.float64)

    def turned(t: Tensor) -> Tensor:
        return rope.apply_to(t, cos, sin)

    assert torch.autograd.gradcheck(turned, x)
    assert torch.equal(x.detach(), before)
