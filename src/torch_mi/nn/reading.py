# SPDX-License-Identifier: MIT OR Apache-2.0
"""A layer's recurrence under hooks: what each token reads of the state, and the state after it."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.norm import length
from torch_mi.nn.recurrence import Recurrence, effective, recur, stepwise
from torch_mi.nn.recurrence_fused import fits, fused
from torch_mi.nn.shift import Steps
from torch_mi.types import Mixed

LEAST = -80.0
"""The logarithm of the smallest decay: what is left after one token is nothing in float32."""
State = Float[Tensor, "*batch head d_key d_value"]


def faded(log: Tensor, tap: Tap, like: Tensor) -> Tensor:
    """The logarithm of the decay, after the edits of the decay itself at `RwkvW`.

    Where it is watched and not edited, it keeps its bits, and gradients pass through what is seen.
    """
    log = log.clamp(min=LEAST)
    if not tap.watches(HookPoint.RwkvW):
        return log
    whole = log.expand(like.shape).exp()
    seen = tap(HookPoint.RwkvW, whole + nothing(whole))
    if tap.edits(HookPoint.RwkvW):
        return seen.clamp(min=math.exp(LEAST)).log()
    return log.detach() + (seen - whole.detach()) / whole.detach()


def read(
    r: Recurrence,
    own: Float[Tensor, "batch pos head"] | None,
    steps: Steps,
    tap: Tap,
    state: State | None,
) -> tuple[Mixed, State]:
    """What every token reads of earlier ones, and the state after the last.

    `own` is what a token's value counts in what it reads of itself beside the state; it is in the
    effective attention, and added by the caller.
    """
    r = gated(r, steps, tap)
    if state is not None and state.ndim < r.k.ndim:  # one that was trained, for every row
        state = state.to(r.dtype).expand(r.k.shape[0], *state.shape)
    y, state = through(r, steps, tap, state)
    if not tap.watches(HookPoint.RwkvEffectiveAttn):
        return y, state

    def attention() -> Tensor:
        found = effective(r)
        return found if own is None else found + torch.diag_embed(own.transpose(1, 2))

    if not tap.edits(HookPoint.RwkvEffectiveAttn) and not torch.is_grad_enabled():
        tap.later(HookPoint.RwkvEffectiveAttn, attention)
        return y, state
    change = changed(attention(), tap)
    return y + torch.einsum("bhqs,bshd->bqhd", change.to(y), r.v), state


def changed(attention: Tensor, tap: Tap) -> Tensor:
    """What edits of the effective attention change; causality holds after them, too.

    Gradients pass through what is seen to what is read, and no further: the way that the run itself
    took is another.
    """
    seen = attention.detach() + nothing(attention)
    return (tap(HookPoint.RwkvEffectiveAttn, seen) - seen.detach()).tril()


def nothing(like: Tensor) -> Tensor:
    """A zero by which what it is added to can be differentiated."""
    graph = torch.is_grad_enabled()
    return torch.zeros((), dtype=like.dtype, device=like.device, requires_grad=graph)


def gated(r: Recurrence, steps: Steps, tap: Tap) -> Recurrence:
    """Writes and erasures as far as they are let through; padding does neither."""
    if tap.watches(HookPoint.RwkvWrite):
        r = replace(r, k=r.k * tap(HookPoint.RwkvWrite, all_of(r.k))[..., None])
    if r.beta is not None and tap.watches(HookPoint.RwkvErase):
        r = replace(r, beta=r.beta * tap(HookPoint.RwkvErase, all_of(r.k))[..., None])
    if steps.real is None:
        return r
    decay = r.decay.expand(r.k.shape[0], r.k.shape[1], *r.decay.shape[2:])
    beta = None if r.beta is None else steps.only_real(r.beta)
    return replace(r, k=steps.only_real(r.k), decay=steps.only_real(decay), beta=beta)


def all_of(x: Mixed) -> Float[Tensor, "batch pos head"]:
    """A gate that lets all through, by which a score can be differentiated."""
    shape, graph = x.shape[:3], torch.is_grad_enabled()
    return torch.ones(shape, dtype=x.dtype, device=x.device, requires_grad=graph)


def through(r: Recurrence, steps: Steps, tap: Tap, state: State | None) -> tuple[Mixed, State]:
    """The recurrence, halted at each token after which someone asks for the state."""
    grows = tap.edits(HookPoint.RwkvW) and not r.decay.is_meta and bool((r.decay > 0).any())
    run = stepwise if steps.explicit or grows else recur  # many at a time only what fades
    stops = tap.stops(HookPoint.RwkvState)
    if stops and not tap.edits(HookPoint.RwkvState) and not torch.is_grad_enabled():
        tap.later(HookPoint.RwkvState, partial(states, run, r, tuple(stops), state))
        stops = ()
    if not stops:
        return fused(r, state) if run is recur and fits(r) else run(r, state)
    edited = tap.edits(HookPoint.RwkvState)
    parts: list[Tensor] = []
    start, state = 0, r.empty() if state is None else state
    for stop in stops:
        y, state = run(r.part(start, stop + 1), state)
        state = tap.step(HookPoint.RwkvState, stop, state)
        if edited and r.inclusive:  # a token reads the state that it leaves
            now = torch.einsum("bhkv,bhk->bhv", state, r.q[:, stop].to(state))[:, None]
            y = torch.cat([y[:, :-1], now.to(y)], 1)
        parts.append(y)
        start = stop + 1
    if start < r.length:
        y, state = run(r.part(start, r.length), state)
        parts.append(y)
    return torch.cat(parts, 1), state


def states(
    run: Callable[[Recurrence, State | None], tuple[Mixed, State]],
    r: Recurrence,
    stops: tuple[int, ...],
    state: State | None,
) -> Float[Tensor, "batch stop head d_key d_value"]:
    """The state after each of some tokens."""
    found: list[Tensor] = []
    for start, stop in zip((0, *(stop + 1 for stop in stops)), stops, strict=False):
        _, state = run(r.part(start, stop + 1), state)
        found.append(state)
    return torch.stack(found, 1)


class HeadNorm(nn.Module):
    """A layer norm of what each head reads, with gain and bias for every channel."""

    def __init__(self, heads: int, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))

    def forward(self, x: Mixed, tap: Tap) -> Mixed:
        h = x.float()
        h = h - h.mean(-1, keepdim=True)
        scale = tap(HookPoint.RwkvNormScale, (length(h).square() / h.shape[-1] + self.eps).sqrt())
        return (h / scale * self.weight + self.bias).to(x)
