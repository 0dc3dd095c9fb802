# SPDX-License-Identifier: MIT OR Apache-2.0
"""The selective state spaces of Mamba (Gu and Dao 2023) and Mamba-2 (Dao and Gu 2024).

A state space's x, B and C are the values, keys and queries of linear attention. A key is written
times the step size; its channel's skip, `D x`, is what a token reads of itself beside the state.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from torch_mi.config.linear import Mamba, Mamba2
from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.conv import ShortConv, convolved
from torch_mi.nn.heads import HeadRms, for_each, side_by_side
from torch_mi.nn.reading import faded, read
from torch_mi.nn.recurrence import Recurrence
from torch_mi.nn.rwkv import matrix
from torch_mi.nn.shift import Steps
from torch_mi.types import Carry, Mixed, Resid, split

Step = Float[Tensor, "batch pos head"]
Rows = Float[Tensor, "batch pos head d_key"]
State = Float[Tensor, "batch head d_key d_value"]


class StateSpace(nn.Module):
    """What both have: the way in, the convolution, decay, skip, and the way out."""

    carried = 2

    def __init__(self, cfg: RecurrentConfig, mixer: Mamba | Mamba2, entering: int) -> None:
        super().__init__()
        self.heads, self.key_size, self.value_size = mixer.heads, mixer.key_size, mixer.value_size
        self.enter = nn.Linear(cfg.hidden_size, entering, bias=mixer.bias)
        self.conv = ShortConv(mixer.convolved, mixer.conv)
        self.skip = nn.Parameter(torch.ones(mixer.heads))
        inner = mixer.heads * mixer.value_size
        self.o = nn.Linear(inner, cfg.hidden_size, bias=mixer.bias)

    def scanned(
        self,
        qkv: tuple[Rows, Rows, Mixed],
        delta: Step,
        log: Float[Tensor, "batch pos head #d_key"],
        run: tuple[Steps, Tap, State | None],
    ) -> tuple[Mixed, State]:
        """What each head reads, its skip included, and the last state."""
        (q, k, v), (steps, tap, state) = qkv, run
        q = tap(HookPoint.RwkvR, q)
        k = tap(HookPoint.RwkvK, delta[..., None] * k)
        v = tap(HookPoint.RwkvV, v)
        own = self.skip.to(v).expand(v.shape[:3])
        turn = Recurrence(q, k, v, faded(log, tap, k), inclusive=True)
        y, state = read(turn, own, steps, tap, state)
        return tap(HookPoint.RwkvWkv, y + tap(HookPoint.RwkvBonus, own[..., None] * v)), state

    def gate(self, z: Tensor, tap: Tap) -> Mixed:
        """The gate on what was read."""
        return tap(HookPoint.RwkvG, split(silu(z), -1, (self.heads, self.value_size)))


class MambaMix(StateSpace):
    """Every channel has its step size and a decay for each number of its state."""

    def __init__(self, cfg: RecurrentConfig, mixer: Mamba, layer: int) -> None:  # noqa: ARG002
        super().__init__(cfg, mixer, 2 * mixer.heads)
        self.parts = [mixer.step_rank, mixer.key_size, mixer.key_size]
        self.select = matrix(mixer.heads, sum(self.parts))
        self.step = nn.Linear(mixer.step_rank, mixer.heads)
        self.decay = nn.Parameter(torch.zeros(mixer.heads, mixer.key_size))

    def forward(
        self, h: Resid, first: Mixed | None, steps: Steps, tap: Tap, past: Carry
    ) -> tuple[Resid, Carry, Mixed | None]:
        x, z = self.enter(h).chunk(2, -1)
        (x,), kept = convolved([self.conv], [x], steps, tap, past[:1])
        x = silu(x)
        low, keys, queries = side_by_side(self.select(x), self.parts)
        delta = tap(HookPoint.RwkvDelta, softplus(self.step(low).float()))
        log = delta[..., None] * -self.decay.float().exp()
        q, k = (t[:, :, None].expand(-1, -1, self.heads, -1) for t in (queries, keys))
        state = past[1] if past else None
        y, state = self.scanned((q, k, x[..., None]), delta, log, (steps, tap, state))
        return self.o((y * self.gate(z, tap)).flatten(2)), (*kept, state), first


class Mamba2Mix(StateSpace):
    """A head has one step size and one decay; what it reads is gated before it is normed."""

    def __init__(self, cfg: RecurrentConfig, mixer: Mamba2, layer: int) -> None:  # noqa: ARG002
        inner = mixer.heads * mixer.value_size
        super().__init__(cfg, mixer, inner + mixer.convolved + mixer.heads)
        self.mixer, shared = mixer, mixer.groups * mixer.key_size
        self.entered = [inner, mixer.convolved, mixer.heads]
        self.parts = [inner, shared, shared]
        self.step_bias = nn.Parameter(torch.zeros(mixer.heads))
        self.decay = nn.Parameter(torch.zeros(mixer.heads))
        self.norm = HeadRms(mixer.heads, inner, mixer.norm_eps, mixer.groups)

    def forward(
        self, h: Resid, first: Mixed | None, steps: Steps, tap: Tap, past: Carry
    ) -> tuple[Resid, Carry, Mixed | None]:
        z, x, low = side_by_side(self.enter(h), self.entered)
        (x,), kept = convolved([self.conv], [x], steps, tap, past[:1])
        x, keys, queries = side_by_side(silu(x), self.parts)
        delta = tap(HookPoint.RwkvDelta, self._step(low))
        log = (delta * -self.decay.float().exp())[..., None]
        groups = (self.mixer.groups, self.key_size)
        q, k = (for_each(split(t, -1, groups), self.heads) for t in (queries, keys))
        v = split(x, -1, (self.heads, self.value_size))
        state = past[1] if past else None
        y, state = self.scanned((q, k, v), delta, log, (steps, tap, state))
        out = self.norm(y * self.gate(z, tap), tap)
        return self.o(out.flatten(2)), (*kept, state), first

    def _step(self, low: Tensor) -> Step:
        """Step sizes between their bounds."""
        step = softplus(low.float() + self.step_bias.float())
        return step.clamp(self.mixer.least_step, self.mixer.most_step)
