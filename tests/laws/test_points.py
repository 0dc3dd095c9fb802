# SPDX-License-Identifier: MIT OR Apache-2.0
"""What every hook point shows, computed again by hand from the weights, in every family.

The arithmetic here is written from the meanings in `docs/hooks.md`, with complex numbers for
rotations and loops where the engine has tensors; it shares nothing with the engine but the weights.
"""

import math
from functools import cache
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from torch_mi import testing
from torch_mi.cache import HookCache
from torch_mi.config.parts import Alibi, BlockLayout, NormType, Over
from torch_mi.config.rope import DynamicNtk, LongRope, Rope
from torch_mi.config.transformer import TransformerConfig
from torch_mi.families import FAMILIES
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Add, Replace
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.nn.norm import Norm
from torch_mi.nn.rotary import attention_factor, frequencies, long_frequencies

TOLERANCE = 2e-5


@cache
def ran(family: str) -> tuple[MIModel, HookCache]:
    """A tiny model of a family and everything one run of it shows."""
    model = testing.tiny(family)
    tokens = testing.random_tokens(model, 2, 11)
    points = [p for p in HookPoint if p in model.backend.hook_points]
    return model, model.forward(tokens, HookSpec().capture(*points))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def layers(model: MIModel) -> Any:
    return enumerate(cast("Any", model.backend).blocks)


def same(found: Tensor, wanted: Tensor, what: str) -> None:
    size = max(1.0, wanted.nan_to_num(neginf=0).abs().max().item())
    torch.testing.assert_close(
        found, wanted.to(found), rtol=0, atol=TOLERANCE * size, msg=lambda m: f"{what}: {m}"
    )


def normed(norm: Norm | None, x: Tensor) -> Tensor:
    """A norm by its definition; no norm leaves `x` as it is."""
    if norm is None or norm.kind is NormType.Absent:
        return x
    kind = norm.kind.value
    x = x.double()
    if kind.startswith("layer"):
        x = x - x.mean(-1, keepdim=True)
    y = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    if norm.weight is not None:
        y = y * (norm.weight.double() + (1 if kind == "rms_plus_one" else 0))
    if norm.bias is not None:
        y = y + norm.bias.double()
    return y.float()


def times(x: Tensor, scale: float | None) -> Tensor:
    return x if scale is None else x * scale


def test_what_attention_and_mlp_read_is_a_norm_of_the_stream(family: str):
    model, seen = ran(family)
    layout = model.config.layout
    for i, block in layers(model):
        before = seen[HookPoint.ResidPre(i)]
        reads = normed(block.norm1, before)
        same(seen[HookPoint.AttnIn(i)], reads, f"AttnIn({i})")
        if HookPoint.MlpIn not in model.backend.layer_points(i):
            continue
        stream = before if layout.parallel else seen[HookPoint.ResidMid(i)]
        mlp_reads = reads if layout is BlockLayout.Parallel else normed(block.norm2, stream)
        same(seen[HookPoint.MlpIn(i)], mlp_reads, f"MlpIn({i})")
    last = seen[HookPoint.ResidPost(model.num_layers - 1)]
    same(seen[HookPoint.FinalNorm], normed(cast("Any", model.backend).norm, last), "FinalNorm")


def test_heads_and_bias_make_what_attention_adds(family: str):
    model, seen = ran(family)
    for i, block in layers(model):
        made = seen[HookPoint.AttnResult(i)].sum(2)
        made = made if block.attn.o_bias is None else made + block.attn.o_bias
        same(block.attn.o(seen[HookPoint.AttnZ(i)].flatten(2)), made, f"AttnResult({i})")
        scaled = times(normed(block.post1, made), model.config.residual_scale)
        same(seen[HookPoint.AttnOut(i)], scaled, f"AttnOut({i})")
        if HookPoint.Ln1PostScale in model.backend.layer_points(i):
            shown = seen[HookPoint.Ln1PostNormalized(i)] * seen[HookPoint.Ln1PostScale(i)]
            centre = made.mean(-1, keepdim=True) if block.post1.kind.centred else 0
            same(shown, made - centre, f"Ln1Post({i})")


def test_a_head_alone_makes_its_share(family: str):
    model, seen = ran(family)
    for i, block in layers(model):
        z, weight = seen[HookPoint.AttnZ(i)], block.attn.o.weight
        width = z.shape[3]
        for head in range(z.shape[2]):
            share = z[:, :, head] @ weight[:, head * width : (head + 1) * width].T
            same(seen[HookPoint.AttnResult(i)][:, :, head], share, f"head {head} of layer {i}")


def test_the_mlp_adds_what_its_norm_and_scale_make_of_it(family: str):
    model, seen = ran(family)
    for i, block in layers(model):
        points = model.backend.layer_points(i)
        if HookPoint.MlpOut not in points:
            continue
        raw = seen[HookPoint.MlpRawOut(i)]
        same(
            seen[HookPoint.MlpOut(i)],
            times(normed(block.post2, raw), model.config.residual_scale),
            f"MlpOut({i})",
        )
        if HookPoint.MlpPre not in points:
            continue
        mlp, reads = block.mlp, seen[HookPoint.MlpIn(i)]
        first = mlp.up if mlp.gate is None else mlp.gate
        same(seen[HookPoint.MlpPre(i)], first(reads), f"MlpPre({i})")
        act = model.config.activation.function(seen[HookPoint.MlpPre(i)])
        if mlp.gate is not None:
            same(seen[HookPoint.MlpPreLinear(i)], mlp.up(reads), f"MlpPreLinear({i})")
            act = act * seen[HookPoint.MlpPreLinear(i)]
        same(seen[HookPoint.MlpPost(i)], normed(mlp.norm, act), f"MlpPost({i})")
        same(raw, mlp.down(seen[HookPoint.MlpPost(i)]), f"MlpRawOut({i})")


def projected(linear: torch.nn.Linear, x: Tensor, heads: int) -> Tensor:
    return linear(x).reshape(*x.shape[:2], heads, -1)


def head_normed(cfg: TransformerConfig, norm: Norm | None, x: Tensor) -> Tensor:
    """Queries or keys after their norm and the clip."""
    if cfg.qk_norm is not None and cfg.qk_norm.over is Over.Whole:
        x = normed(norm, x.flatten(2)).view_as(x)
    elif cfg.qk_norm is not None:
        x = normed(norm, x)
    return x if cfg.clip_qkv is None else x.clamp(-cfg.clip_qkv, cfg.clip_qkv)


def speeds(rope: Rope, length: int) -> Tensor:
    """Radians per position in a run of this length."""
    match rope.scaling:
        case DynamicNtk(factor=factor, context=context) if length > context:
            stretch = factor * length / context - (factor - 1)
            base = rope.theta * stretch ** (rope.dim / (rope.dim - 2))
            return base ** -(torch.arange(0, rope.dim, 2).double() / rope.dim)
        case LongRope(context=context) if length > context:
            return long_frequencies(rope).double()
        case _:
            return frequencies(rope).double()


def turned(cfg: TransformerConfig, layer: int, x: Tensor) -> Tensor:
    """Each pair of dimensions as one complex number, times exp(i · position · frequency)."""
    rope = cfg.ropes[layer]
    if rope is None:
        return x
    angles = torch.arange(x.shape[1]).double()[:, None, None] * speeds(rope, x.shape[1])
    spin = torch.polar(torch.ones_like(angles), angles) * attention_factor(rope)
    pairs = range(rope.dim // 2)
    first = [2 * j for j in pairs] if rope.interleaved else list(pairs)
    second = [j + 1 if rope.interleaved else j + rope.dim // 2 for j in first]
    z = torch.complex(x[..., first].double(), x[..., second].double()) * spin
    out = x.clone()
    out[..., first], out[..., second] = z.real.float(), z.imag.float()
    return out


def test_queries_keys_and_values_are_projections_normed_and_turned(family: str):
    model, seen = ran(family)
    cfg = model.config
    if cfg.latent is not None:
        pytest.skip("latent attention unfolds its keys; parity covers it")
    for i, block in layers(model):
        attn, reads = block.attn, seen[HookPoint.AttnIn(i)]
        for linear, norm, heads, made, after in (
            (attn.q, attn.norm_q, attn.heads, HookPoint.AttnQ, HookPoint.AttnRotQ),
            (attn.k, attn.norm_k, attn.kv_heads, HookPoint.AttnK, HookPoint.AttnRotK),
        ):
            same(seen[made(i)], projected(linear, reads, heads), f"{made.name}({i})")
            wanted = turned(cfg, i, head_normed(cfg, norm, seen[made(i)]))
            same(seen[after(i)], wanted, f"{after.name}({i})")
        v = projected(attn.v, reads, attn.kv_heads)
        v = v if cfg.clip_qkv is None else v.clamp(-cfg.clip_qkv, cfg.clip_qkv)
        same(seen[HookPoint.AttnV(i)], v, f"AttnV({i})")
        for point, heads in (
            (HookPoint.AttnQIn, attn.heads),
            (HookPoint.AttnKIn, attn.kv_heads),
            (HookPoint.AttnVIn, attn.kv_heads),
        ):
            assert torch.equal(seen[point(i)], reads[:, :, None].repeat(1, 1, heads, 1))


def slope(alibi: Alibi, heads: int, head: int) -> float:
    """The slope of one head; where heads are no power of two, every second of the next first."""
    above = 2 ** math.ceil(math.log2(heads))
    every = [2.0 ** (-alibi.max_bias * (j + 1) / above) for j in range(above)]
    return ([*every[1::2], *every[::2]])[head] if above != heads else every[head]


def bias(cfg: TransformerConfig, head: int, query: int, key: int) -> float:
    """What distance adds to one score."""
    if cfg.alibi is None:
        return 0.0
    steep = slope(cfg.alibi, cfg.num_attention_heads, head)
    if cfg.alibi.rounded:
        product = torch.tensor(steep).bfloat16() * torch.tensor(float(key)).bfloat16()
        return float(product)
    return -steep * (query - key)


def test_scores_are_products_capped_and_masked(family: str):
    model, seen = ran(family)
    cfg, groups = model.config, model.num_heads // model.num_kv_heads
    for i in range(model.num_layers):
        q, k = seen[HookPoint.AttnRotQ(i)].double(), seen[HookPoint.AttnRotK(i)].double()
        scores, window = seen[HookPoint.AttnScores(i)], cfg.windows[i]
        share = k.shape[2] if cfg.latent is not None else None
        for head in range(model.num_heads):
            keys = k[:, :, head if share == model.num_heads else head // groups]
            wanted = torch.einsum("bqd,bkd->bqk", q[:, :, head], keys) * cfg.attn_scales[i]
            if cfg.attn_logit_softcapping is not None:
                cap = cfg.attn_logit_softcapping
                wanted = cap * (wanted / cap).tanh()
            for query in range(q.shape[1]):
                for key in range(q.shape[1]):
                    near = window is None or query - key < window
                    added = bias(cfg, head, query, key)
                    if cfg.alibi is not None and cfg.alibi.scaled:
                        added *= cfg.attn_scales[i]
                    wanted[:, query, key] += added if key <= query and near else -math.inf
            same(scores[:, head], wanted.float(), f"scores of head {head} in layer {i}")
        same(seen[HookPoint.AttnPattern(i)], scores.float().softmax(-1), f"pattern of layer {i}")


def test_the_stream_between_the_halves_of_a_parallel_block_is_read_by_nobody(family: str):
    model, _ = ran(family)
    tokens = testing.random_tokens(model, 2, 11)
    if HookPoint.ResidMid not in model.backend.hook_points:
        pytest.skip("attention alone")
    points = (HookPoint.MlpIn(0), HookPoint.ResidPost(0))
    noise = torch.randn(2, 11, model.hidden_size, generator=torch.Generator().manual_seed(0))
    edit = HookSpec().intervene(HookPoint.ResidMid(0), Add(noise))
    plain = model.forward(tokens, HookSpec().capture(*points))
    moved = model.forward(tokens, HookSpec().capture(*points) | edit)
    if model.config.layout.parallel:
        assert torch.equal(plain[points[0]], moved[points[0]])
        same(moved[points[1]], plain[points[1]] + noise, "ResidPost(0)")
    else:
        assert not torch.allclose(plain[points[0]], moved[points[0]], atol=1e-3)


def test_an_edited_input_of_one_head_is_that_head_with_another_input(family: str):
    """The run goes on as if the head's queries had been computed from the other input by hand."""
    model, _ = ran(family)
    if HookPoint.AttnQIn not in model.backend.hook_points:
        pytest.skip("latent attention has no inputs head by head")
    tokens = testing.random_tokens(model, 2, 11)
    other = torch.randn(2, 11, model.hidden_size, generator=torch.Generator().manual_seed(1))
    layer, block = list(layers(model))[-1]
    attn = block.attn
    for linear, heads, reads, made in (
        (attn.q, attn.heads, HookPoint.AttnQIn, HookPoint.AttnQ),
        (attn.k, attn.kv_heads, HookPoint.AttnKIn, HookPoint.AttnK),
        (attn.v, attn.kv_heads, HookPoint.AttnVIn, HookPoint.AttnV),
    ):
        head = heads - 1
        by_hand = projected(linear, other, heads)[:, :, head]
        if made is HookPoint.AttnV and model.config.clip_qkv is not None:
            by_hand = by_hand.clamp(-model.config.clip_qkv, model.config.clip_qkv)
        one = HookSpec().intervene(reads(layer), Replace(other, at=At(head=head)))
        two = HookSpec().intervene(made(layer), Replace(by_hand, at=At(head=head)))
        found, wanted = model.forward(tokens, one).output, model.forward(tokens, two).output
        plain = model.forward(tokens).output
        same(found, wanted, f"logits with the input of head {head} at {reads.name} replaced")
        assert not torch.allclose(found, plain, atol=1e-4)


def test_logits_are_the_unembedding_scaled_and_capped(family: str):
    model, seen = ran(family)
    head, backend = model.config.head, model.backend
    wanted = seen[HookPoint.FinalNorm] @ backend.unembedding.T
    wanted = wanted if backend.unembedding_bias is None else wanted + backend.unembedding_bias
    wanted = times(wanted, head.scale)
    if head.softcap is not None:
        wanted = head.softcap * (wanted / head.softcap).tanh()
    same(seen[HookPoint.Logits], wanted, "logits")
