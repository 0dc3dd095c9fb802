# SPDX-License-Identifier: MIT OR Apache-2.0
"""The laws, held against linear recurrences: state spaces, gated attention, the delta rule."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import torch_mi as mi
from torch_mi import testing
from torch_mi.backends.recurrent import Recurrent
from torch_mi.config.linear import (
    Conv,
    DeltaNet,
    Gla,
    Hgrn2,
    KeyActivation,
    KeyNorm,
    Mamba,
    Mamba2,
    RetNet,
)
from torch_mi.config.parts import NormType
from torch_mi.config.recurrent import ChannelMix, Mixer, RecurrentConfig
from torch_mi.errors import ConfigError
from torch_mi.hooks.point import HookPoint as P

VOCAB, LAYERS = 29, 2
CONV = Conv(size=3, bias=True)
EPS = 1e-3
MIXERS: Mapping[str, Mixer] = {
    "mamba": Mamba(heads=6, key_size=5, step_rank=3, conv=CONV, bias=True),
    "mamba2": Mamba2(
        heads=4, key_size=5, value_size=3, groups=2, conv=CONV, bias=True, norm_eps=EPS
    ),
    "gla": Gla(
        heads=4,
        kv_heads=2,
        key_size=3,
        value_size=5,
        decay_rank=4,
        decay_divisor=4.0,
        least_decay=None,
        activation=None,
        conv=CONV,
        gated=True,
        norm_eps=EPS,
    ),
    "retnet": RetNet(
        heads=4,
        kv_heads=2,
        key_size=6,
        value_size=5,
        theta=100.0,
        activation=None,
        gated=True,
        norm_eps=EPS,
    ),
    "hgrn2": Hgrn2(heads=3, key_size=4, value_size=5, conv=None, bounded=True, norm_eps=EPS),
    "delta": DeltaNet(
        heads=3,
        key_size=4,
        value_size=5,
        conv=CONV,
        gated=True,
        activation=KeyActivation.Silu,
        norm=KeyNorm.Length,
        rated=True,
        most_rate=2.0,
        norm_eps=EPS,
    ),
    "delta, always all": DeltaNet(
        heads=3,
        key_size=4,
        value_size=5,
        conv=None,
        gated=False,
        activation=KeyActivation.EluPlusOne,
        norm=KeyNorm.Sum,
        rated=False,
        most_rate=1.0,
        norm_eps=EPS,
    ),
}
FAST = (
    testing.every_hook_fires,
    testing.the_residual_stream_adds_up,
    testing.a_prefix_and_the_rest_are_the_whole,
    testing.padding_is_not_seen,
)
SLOW: Mapping[testing.Law, tuple[str, ...]] = {
    testing.watching_changes_nothing: ("gla", "delta"),
    testing.identity_edits_change_nothing: ("mamba2",),
    testing.edits_reach_no_earlier_position: ("gla",),
    testing.captures_can_be_differentiated: ("delta, always all",),
}
"""Laws that take many runs, with the kinds that they are held against."""


def made(name: str, layers: int = LAYERS) -> mi.MIModel:
    """A tiny model in which nothing is at its default."""
    mixer = MIXERS[name]
    alone = isinstance(mixer, Mamba | Mamba2)
    cfg = RecurrentConfig(
        hidden_size=12,
        num_layers=layers,
        intermediate_size=0 if alone else 14,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        mixer=mixer,
        channel_mix=ChannelMix.Absent if alone else ChannelMix.Swiglu,
        previous_first=False,
        norm_type=NormType.Rms,
        norm_eps=EPS,
        embedding_norm=False,
    )
    backend = Recurrent(cfg)
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for place, value in backend.named_parameters():
            noise = torch.randn(value.shape, generator=dice)
            if value.ndim > 1 and place not in ("tokens.weight", "bounds"):
                noise = noise / value.shape[-1] ** 0.5
            elif place.endswith("weight") and value.ndim == 1:
                noise = 1 + 0.3 * noise
            value.copy_(noise)
    return mi.MIModel(backend.eval())


def tokens(pos: int = 6) -> Tensor:
    return torch.randint(VOCAB, (2, pos), generator=torch.Generator().manual_seed(1))


def near(found: Tensor, wanted: Tensor) -> None:
    size = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found, wanted, atol=1e-5 * size, rtol=0)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("law", FAST, ids=lambda law: law.__name__)
def test_law(law: testing.Law, name: str) -> None:
    law(made(name), tokens(5))


SLOW_PAIRS = [(law, name) for law, names in SLOW.items() for name in names]


@pytest.mark.parametrize(
    ("law", "name"), SLOW_PAIRS, ids=[f"{law.__name__}-{name}" for law, name in SLOW_PAIRS]
)
def test_law_of_many_runs(law: testing.Law, name: str) -> None:
    law(made(name, layers=1), tokens(4))


@pytest.mark.parametrize("name", MIXERS)
def test_the_state_is_what_its_parts_say(name: str) -> None:
    """Each token's state, from decays, keys, values and erasures that were captured."""
    model, ids = made(name), tokens()
    points = model.backend.hook_points & {
        P.RwkvR, P.RwkvK, P.RwkvV, P.RwkvW, P.RwkvA, P.RwkvKappa, P.RwkvBonus, P.RwkvWkv,
        P.RwkvState, P.RwkvEffectiveAttn,
    }  # fmt: skip
    seen = model.forward(ids, mi.HookSpec().capture(*points))
    for layer in range(LAYERS):
        at = {point: seen[point(layer)] for point in points}
        state = torch.zeros_like(at[P.RwkvState][:, 0])
        for t in range(ids.shape[1]):
            before = state
            k, v = at[P.RwkvK][:, t], at[P.RwkvV][:, t]
            state = at[P.RwkvW][:, t, :, :, None] * before + k[..., None] * v[..., None, :]
            if P.RwkvKappa in points:
                kappa, rate = at[P.RwkvKappa][:, t], at[P.RwkvA][:, t]
                found = torch.einsum("bhk,bhkv->bhv", kappa, before)
                state = state - (rate * kappa)[..., None] * found[..., None, :]
            near(at[P.RwkvState][:, t], state)
            read = torch.einsum("bhk,bhkv->bhv", at[P.RwkvR][:, t], state)
            own = at[P.RwkvBonus][:, t] if P.RwkvBonus in points else 0
            near(at[P.RwkvWkv][:, t], read + own)
        effect = torch.einsum("bhqs,bshv->bqhv", at[P.RwkvEffectiveAttn], at[P.RwkvV])
        near(effect, at[P.RwkvWkv])


@pytest.mark.parametrize("name", MIXERS)
def test_padding_anywhere_is_passed_over(name: str) -> None:
    """Holes in a prefix and after it: convolution, rotation and state go from word to word."""
    model = made(name)
    ids = tokens(9)
    real = torch.tensor([[0, 1, 1, 0, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 1, 0, 1, 0]]).bool()
    spec = mi.HookSpec().capture(P.ResidPost)
    prefix = model.forward(ids[:, :4], attention_mask=real[:, :4], after=mi.Prefix()).prefix
    rest = model.forward(ids[:, 4:], spec, attention_mask=real[:, 4:], after=prefix)
    for row, mask in enumerate(real):
        alone = model.forward(ids[row, mask][None], spec)
        later = mask[4:]
        near(rest.output[row, later], alone.output[0, -int(later.sum()) :])


@pytest.mark.parametrize("name", ["mamba", "delta", "gla"])
def test_a_replaced_state_is_read_from_then_on(name: str) -> None:
    """A state that is put in place at a token is what that token and later ones read."""
    model, ids, at = made(name), tokens(), 3
    point = P.RwkvState(0)
    seen = model.forward(ids, mi.HookSpec().capture(point, P.RwkvR(0), P.RwkvWkv(0)))
    other = torch.rand(seen[point][:, at].shape, generator=torch.Generator().manual_seed(2))
    edit = mi.Replace(other, at=mi.At(pos=at))
    spec = mi.HookSpec().capture(point, P.RwkvWkv(0)).intervene(point, edit)
    edited = model.forward(ids, spec)
    near(edited[point][:, at], other)
    near(edited[point][:, :at], seen[point][:, :at])
    gained = torch.einsum("bhk,bhkv->bhv", seen[P.RwkvR(0)][:, at], other - seen[point][:, at])
    near(edited[P.RwkvWkv(0)][:, at], seen[P.RwkvWkv(0)][:, at] + gained)
    assert not torch.equal(edited.output[:, at + 1 :], seen.output[:, at + 1 :])


def test_a_write_that_is_knocked_out_leaves_no_trace_in_the_state() -> None:
    model, ids = made("gla"), tokens()
    spec = mi.HookSpec().capture(P.RwkvState(0), P.RwkvW(0))
    plain = model.forward(ids, spec)
    gone = mi.StateKnockoutSpec(positions=(2,), layers=(0,))
    spec.state_knockout = gone
    seen = model.forward(ids, spec)
    state, decay = seen[P.RwkvState(0)], seen[P.RwkvW(0)]
    near(state[:, 2], decay[:, 2][..., None] * plain[P.RwkvState(0)][:, 1])


def test_configs_that_fit_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 heads cannot share the keys of 2 groups"):
        Mamba2(heads=5, key_size=5, value_size=3, groups=2, conv=CONV, bias=True, norm_eps=EPS)
    with pytest.raises(ConfigError, match="a convolution over 0 tokens"):
        Conv(size=0, bias=True)
