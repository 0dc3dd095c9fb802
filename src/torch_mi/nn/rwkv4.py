# SPDX-License-Identifier: MIT OR Apache-2.0
"""The time mixing of RWKV-4 (Peng et al. 2023): means of earlier values, channel by channel."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from torch_mi.config.recurrent import RecurrentConfig, Rwkv4
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.reading import all_of, changed, faded
from torch_mi.nn.rwkv import coefficients, matrix, mixed
from torch_mi.nn.shift import Steps
from torch_mi.nn.wkv4 import effective4, wkv4
from torch_mi.types import Carry, Mixed, Resid


class Rwkv4Mix(nn.Module):
    """Every channel is a head, with a key and a value of one number and a state of three."""

    carried = 2

    def __init__(self, cfg: RecurrentConfig, mixer: Rwkv4, layer: int) -> None:  # noqa: ARG002
        super().__init__()
        width, inner = cfg.hidden_size, mixer.width
        self.mix_r, self.mix_k, self.mix_v = (coefficients(width) for _ in range(3))
        self.r, self.k, self.v = (matrix(width, inner) for _ in range(3))
        self.o = matrix(inner, width)
        self.decay, self.bonus = (nn.Parameter(torch.zeros(inner)) for _ in range(2))

    def forward(
        self, h: Resid, first: Mixed | None, steps: Steps, tap: Tap, past: Carry
    ) -> tuple[Resid, Carry, Mixed | None]:
        last, state = past or (None, None)
        before = tap(HookPoint.RwkvShift, steps.shifted(h, last))
        r, k, v = (
            each(mixed(h, before, by, previous_first=False))
            for each, by in ((self.r, self.mix_r), (self.k, self.mix_k), (self.v, self.mix_v))
        )
        r = channel(HookPoint.RwkvR, r.sigmoid(), tap)
        k, v = channel(HookPoint.RwkvK, k, tap), channel(HookPoint.RwkvV, v, tap)
        log = -self.decay.float().exp()[None, None, :, None]
        decay = faded(log, tap, k[..., None])[..., 0]
        y, state = self._read(k, v, decay, (steps, tap, state))
        out = self.o(r * channel(HookPoint.RwkvWkv, y, tap))
        return out, (steps.last(h, last), state), first

    def _read(
        self, k: Tensor, v: Tensor, decay: Tensor, run: tuple[Steps, Tap, Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """The mean that every token reads, and the sums after the last."""
        steps, tap, state = run
        gate = None
        if tap.watches(HookPoint.RwkvWrite):
            gate = tap(HookPoint.RwkvWrite, all_of(k[..., None]))
        if steps.real is not None:
            gate = steps.only_real(torch.ones_like(k) if gate is None else gate)
            decay = steps.only_real(decay.expand(k.shape))
        bonus = self.bonus.float()
        before = state
        y, state = halted((k, v, decay, gate), bonus, tap, state)
        if not tap.watches(HookPoint.RwkvEffectiveAttn):
            return y, state
        if not tap.edits(HookPoint.RwkvEffectiveAttn) and not torch.is_grad_enabled():
            make = partial(attention, (k, decay, bonus, gate), before)
            tap.later(HookPoint.RwkvEffectiveAttn, make)
            return y, state
        change = changed(attention((k, decay, bonus, gate), before), tap)
        return y + torch.einsum("bcqs,bsc->bqc", change.to(y), v), state


def attention(parts: "Parts", before: Tensor | None) -> Tensor:
    """What each token's value counts in each mean; `before` are the sums over earlier runs."""
    found = effective4(*parts)
    if before is None:
        return found
    k, decay, bonus, gate = parts
    without = torch.cat([torch.zeros_like(before[..., :1]), before[..., 1:]], -1)
    share, _ = wkv4(k, torch.ones_like(k), decay, bonus, gate, without)
    return found * share.mT[..., None]


def channel(point: HookPoint, x: Tensor, tap: Tap) -> Tensor:
    """Hand over channels [batch pos channel] as heads of one number each."""
    return tap(point, x[..., None])[..., 0] if tap.watches(point) else x


Parts = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Keys, values, logarithms of decays, and a gate on what is written, if any."""


def part(parts: Parts, here: slice) -> Parts:
    """Some tokens of the recurrence; what is the same for all stays."""
    k, v, decay, gate = parts
    decay = decay if decay.shape[1] == 1 else decay[:, here]
    return k[:, here], v[:, here], decay, None if gate is None else gate[:, here]


def halted(parts: Parts, bonus: Tensor, tap: Tap, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The recurrence, halted at each token after which someone asks for the sums."""
    stops = tap.stops(HookPoint.RwkvState)
    if stops and not tap.edits(HookPoint.RwkvState) and not torch.is_grad_enabled():
        tap.later(HookPoint.RwkvState, partial(sums, parts, bonus, tuple(stops), state))
        stops = ()
    means: list[Tensor] = []
    for here, stop in pieces(stops, parts[0].shape[1]):
        k, v, decay, gate = part(parts, here)
        y, state = wkv4(k, v, decay, bonus, gate, state)
        state = tap.step(HookPoint.RwkvState, stop, state[:, :, None])[:, :, 0]
        means.append(y)
    if state is None:
        raise ValueError("a run of no tokens")
    return torch.cat(means, 1) if len(means) > 1 else means[0], state


def pieces(stops: Sequence[int], length: int) -> Iterator[tuple[slice, int]]:
    """The tokens up to each stop and to the end, and the last of each."""
    start = 0
    for stop in stops if length - 1 in stops else [*stops, length - 1]:
        yield slice(start, stop + 1), stop
        start = stop + 1


def sums(parts: Parts, bonus: Tensor, stops: tuple[int, ...], state: Tensor | None) -> Tensor:
    """The sums [batch stop channel 1 3] after each of some tokens."""
    found: list[Tensor] = []
    for here, stop in pieces(stops, parts[0].shape[1]):
        k, v, decay, gate = part(parts, here)
        _, state = wkv4(k, v, decay, bonus, gate, state)
        found += [state[:, :, None]] if stop in stops else []
    return torch.stack(found, 1)
