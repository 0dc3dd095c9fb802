# SPDX-License-Identifier: MIT OR Apache-2.0
"""The laws, held against models of hand-written configs: every axis, with every other."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torch_mi as mi
from torch_mi import testing
from torch_mi.config.activation import Activation
from torch_mi.config.parts import Alibi, BlockLayout, Head, Learned, NormType, Over, QkNorm
from torch_mi.config.rope import Rope
from torch_mi.hooks.point import HookPoint

# beartype looks at a random item of a list, in strategies too; that decides no example
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

VOCAB = 13
NEEDS_ORDER = (testing.edits_reach_no_earlier_position, testing.a_prefix_and_the_rest_are_the_whole)
"""Laws about what came before, which a model that looks ahead does not know."""

SLOW = (
    testing.watching_changes_nothing,
    testing.identity_edits_change_nothing,
    testing.edits_reach_no_earlier_position,
    testing.captures_can_be_differentiated,
)
FAST = [law for law in testing.LAWS if law not in SLOW]


def small(**more: object) -> mi.TransformerConfig:
    """A tiny config, with these fields of `TransformerConfig.toy`."""
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "head_dim": 6, "intermediate_size": 16}
    return mi.TransformerConfig.toy(**{"vocab_size": VOCAB, "num_layers": 2, **sizes, **more})  # pyright: ignore[reportArgumentType] - named fields


def model_of(cfg: mi.TransformerConfig, seed: int = 0) -> mi.MIModel:
    """A model in which nothing is at its default: gains not one, biases not zero."""
    model = mi.MIModel.from_config(cfg, seed=seed, device="cpu")
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            noise = torch.randn(value.shape, generator=dice)
            value.add_(0.3 * noise if value.ndim == 1 else noise / value.shape[1] ** 0.5)
    return model


def laws_of(cfg: mi.TransformerConfig, laws: "list[testing.Law]") -> "list[testing.Law]":
    return [law for law in laws if cfg.causal or law not in NEEDS_ORDER]


TOYS = {
    "attention alone": small(intermediate_size=0),
    "attention alone, one layer, no norms, no positions": small(
        num_layers=1, intermediate_size=0, norm_type="absent", positions="none", biases=False
    ),
    "no norms, ReLU": small(norm_type="absent", activation="relu"),
    "looking both ways": small(causal=False),
    "looking both ways, rotary": small(causal=False, positions="rotary", norm_type="rms"),
    "other logits": small(output_vocab_size=5),
    "one embedding, no bias": small(tie_word_embeddings=True, biases=False),
    "SoLU and its norm": small(activation="solu_norm"),
    "alibi, shared keys": small(positions="alibi", num_kv_heads=1),
    "parallel, gated": small(layout="parallel", gated_mlp=True, activation="solu"),
}


@pytest.mark.parametrize("law", testing.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", TOYS)
def test_toys_obey_the_laws(name: str, law: testing.Law) -> None:
    if law in laws_of(TOYS[name], [law]):
        model = model_of(TOYS[name])
        law(model, testing.random_tokens(model, 2, 6))


ROPES = [Rope(30.0, 6), Rope(30.0, 4, interleaved=True), None]
QK_NORMS = [QkNorm(kind, over) for kind in NormType for over in Over]


PLAIN = (NormType.RmsBare, NormType.LayerBare)


@st.composite
def configs(draw: st.DrawFn, layout: BlockLayout, norm: NormType) -> mi.TransformerConfig:
    """Any choice on every other axis."""

    def some(*choices: object) -> object:
        return draw(st.sampled_from(choices))

    def flip() -> bool:
        return draw(st.booleans())

    positions = draw(st.sampled_from(["learned", "rotary", "alibi", "none"]))
    cfg = small(
        layout=layout,
        norm_type=norm,
        num_layers=draw(st.integers(1, 2)),
        num_kv_heads=some(1, 3),
        intermediate_size=some(0, 16),
        activation=some(*Activation),
        gated_mlp=flip(),
        biases=flip(),
        causal=flip(),
        positions=positions,
    )
    layers = cfg.num_layers
    other = draw(st.sampled_from([None, 5]))
    return replace(
        cfg,
        ropes=tuple(draw(st.sampled_from(ROPES)) for _ in range(layers))
        if positions == "rotary"
        else cfg.ropes,
        alibi=Alibi(scaled=flip()) if positions == "alibi" else None,
        windows=tuple(draw(st.sampled_from([None, 2, 4])) for _ in range(layers)),
        attn_logit_softcapping=some(None, 3.0),
        qk_norm=draw(st.sampled_from([None, *QK_NORMS])),
        clip_qkv=some(None, 1.5),
        residual_scale=some(None, 0.5),
        embedding=replace(
            cfg.embedding,
            scale=draw(st.sampled_from([None, 2.0])),
            norm=flip() and norm not in PLAIN,  # a norm of a norm divides by 1, whatever is done
            learned=Learned(12, offset=2) if positions == "learned" else None,
        ),
        head=Head(
            bias=flip(),
            scale=draw(st.sampled_from([None, 0.3])),
            softcap=draw(st.sampled_from([None, 4.0])),
            vocab_size=other,
            norm_type=draw(st.sampled_from([None, *NormType])),
        ),
        tie_word_embeddings=other is None and flip(),
    )


@pytest.mark.parametrize("norm", NormType, ids=lambda norm: norm.value)
@pytest.mark.parametrize("layout", BlockLayout, ids=lambda layout: layout.value)
def test_every_axis_with_every_other(layout: BlockLayout, norm: NormType) -> None:
    @settings(max_examples=2, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def hold(data: st.DataObject) -> None:
        cfg = data.draw(configs(layout, norm))
        model = model_of(cfg, data.draw(st.integers(0, 9)))
        tokens = testing.random_tokens(model, 2, 5, data.draw(st.integers(0, 9)))
        for law in laws_of(cfg, FAST):
            law(model, tokens)
        target, versus = data.draw(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 4)))
        shares_are_the_logit(model, tokens[0], target, versus)
        the_lens_ends_at_the_logits(model, tokens[0])

    hold()


@pytest.mark.slow
@pytest.mark.parametrize("layout", BlockLayout, ids=lambda layout: layout.value)
@pytest.mark.parametrize("law", SLOW, ids=lambda law: law.__name__)
def test_every_layout_under_the_slow_laws(layout: BlockLayout, law: testing.Law) -> None:
    @settings(max_examples=2, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def hold(data: st.DataObject) -> None:
        cfg = data.draw(configs(layout, data.draw(st.sampled_from(NormType))))
        if law in laws_of(cfg, [law]):
            model = model_of(cfg, data.draw(st.integers(0, 9)))
            law(model, testing.random_tokens(model, 2, 5))

    hold()


def shares_are_the_logit(
    model: mi.MIModel, row: torch.Tensor, target: int, versus: int | None
) -> None:
    found = mi.attribute(model, row, target=target, versus=versus)
    size = max(1.0, *(abs(share.value) for share in found.shares))
    assert found.error < 1e-4 * size
    cap = model.config.head.softcap
    output = model.forward(row).output[0, -1]
    before = output if cap is None else cap * torch.atanh(output.double() / cap)
    wanted = float(before[target] - (0 if versus is None else before[versus]))
    close = 1e-4 if cap is None else 2e-2  # a squashed logit has lost digits
    if abs(float(output[target])) < 0.99 * (cap or torch.inf):
        assert versus is not None or abs(found.logit - wanted) < close * max(1.0, abs(wanted))


def the_lens_ends_at_the_logits(model: mi.MIModel, row: torch.Tensor) -> None:
    found = mi.logit_lens(model, row, top_k=3, target=2, embedding=True)
    probabilities = model.forward(row).output[0, -1].softmax(-1)
    last = found.at()[-1]
    assert last.target is not None
    assert last.target.probability == pytest.approx(float(probabilities[2]), abs=1e-5)
    assert found.layers == [*range(-1, model.num_layers)]


@pytest.mark.parametrize("positions", ["learned", "rotary", "alibi", "none"])
def test_padding_is_not_seen_by_what_looks_both_ways(positions: str) -> None:
    model = model_of(small(causal=False, positions=positions))
    tokens = testing.random_tokens(model, 2, 7)
    for mask in (
        torch.tensor([[1] * 7, [0] * 3 + [1] * 4]),
        torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
    ):
        spec = mi.HookSpec().capture(HookPoint.AttnPattern)
        ran = model.forward(tokens, spec, attention_mask=mask)
        real = mask[1].bool()
        alone = model.forward(tokens[1, real], spec)
        torch.testing.assert_close(ran.output[1, real], alone.output[0], atol=1e-5, rtol=0)
        pattern = ran[HookPoint.AttnPattern(1)][1][:, real]
        assert (pattern[..., ~real] == 0).all()
        assert pattern[..., real].triu(1).sum() > 0
