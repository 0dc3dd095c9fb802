# SPDX-License-Identifier: MIT OR Apache-2.0
"""The time mixing of RWKV-5 and 6 (Peng et al. 2024, "Eagle and Finch")."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from torch_mi.config.recurrent import RecurrentConfig, Rwkv5, Rwkv6
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.reading import HeadNorm, faded, read
from torch_mi.nn.recurrence import Recurrence
from torch_mi.nn.rwkv import LowRank, beginning, coefficients, matrix, mixed
from torch_mi.nn.shift import Steps
from torch_mi.types import Carry, Mixed, Resid, split

Decay = Float[Tensor, "#batch #pos head #d_key"]


class MatrixState(nn.Module):
    """A state of keys and values for each head; its reading, norm, gate and output."""

    carried = 2

    def __init__(self, cfg: RecurrentConfig, mixer: Rwkv5 | Rwkv6, *, gated: bool) -> None:
        super().__init__()
        self.heads = mixer.heads
        self.keys = mixer.heads, mixer.key_size
        self.values = mixer.heads, mixer.value_size
        width, inner = cfg.hidden_size, mixer.heads * mixer.value_size
        self.r, self.k = (matrix(width, mixer.heads * mixer.key_size) for _ in range(2))
        self.v = matrix(width, inner)
        self.g = matrix(width, inner) if gated else None
        self.o = matrix(inner, width)
        self.norm = HeadNorm(mixer.heads, mixer.value_size, mixer.norm_eps)
        self.start = beginning(cfg, mixer.heads, mixer.key_size, mixer.value_size)

    def mixed_out(
        self,
        rkvg: tuple[Resid, Resid, Resid, Resid],
        decay: Decay,
        bonus: Float[Tensor, "head #d_key"],
        run: tuple[Steps, Tap, Tensor | None],
    ) -> tuple[Resid, Tensor]:
        """What is written to the stream, from what r, k, v and g read, and the last state."""
        steps, tap, state = run
        x_r, x_k, x_v, x_g = rkvg
        r = tap(HookPoint.RwkvR, split(self.r(x_r), -1, self.keys))
        k = tap(HookPoint.RwkvK, split(self.k(x_k), -1, self.keys))
        v = tap(HookPoint.RwkvV, split(self.v(x_v), -1, self.values))
        own = (r * bonus.to(r) * k).sum(-1)
        turn = Recurrence(r, k, v, faded(decay, tap, r), inclusive=False)
        y, state = read(turn, own, steps, tap, state)
        y = tap(HookPoint.RwkvWkv, y + tap(HookPoint.RwkvBonus, own[..., None] * v))
        z = self.norm(y, tap)
        if self.g is not None:
            z = z * tap(HookPoint.RwkvG, split(silu(self.g(x_g)), -1, self.values))
        return self.o(z.flatten(2)), state


class Rwkv5Mix(MatrixState):
    """Fixed mixing and a fixed decay."""

    def __init__(self, cfg: RecurrentConfig, mixer: Rwkv5, layer: int) -> None:  # noqa: ARG002
        super().__init__(cfg, mixer, gated=mixer.gated)
        self.mix_r, self.mix_k, self.mix_v = (coefficients(cfg.hidden_size) for _ in range(3))
        self.mix_g = coefficients(cfg.hidden_size) if mixer.gated else None
        each = mixer.key_size if mixer.by_channel else 1
        self.decay = nn.Parameter(torch.zeros(mixer.heads, each))
        self.bonus = nn.Parameter(torch.zeros(mixer.heads, each))

    def forward(
        self, h: Resid, first: Mixed | None, steps: Steps, tap: Tap, past: Carry
    ) -> tuple[Resid, Carry, Mixed | None]:
        last, state = past or (None, self.start)
        before = tap(HookPoint.RwkvShift, steps.shifted(h, last))
        r, k, v = (
            mixed(h, before, by, previous_first=False)
            for by in (self.mix_r, self.mix_k, self.mix_v)
        )
        g = r if self.mix_g is None else mixed(h, before, self.mix_g, previous_first=False)
        decay = -self.decay.float().exp()[None, None]
        out, state = self.mixed_out((r, k, v, g), decay, self.bonus, (steps, tap, state))
        return out, (steps.last(h, last), state), first


class Rwkv6Mix(MatrixState):
    """Mixing and a decay that depend on the text."""

    def __init__(self, cfg: RecurrentConfig, mixer: Rwkv6, layer: int) -> None:  # noqa: ARG002
        super().__init__(cfg, mixer, gated=True)
        width, inner = cfg.hidden_size, mixer.heads * mixer.key_size
        self.mix_x, self.mix_w, self.mix_k = (coefficients(width) for _ in range(3))
        self.mix_v, self.mix_r, self.mix_g = (coefficients(width) for _ in range(3))
        self.mix_down = nn.Parameter(torch.zeros(width, 5 * mixer.mix_rank))
        self.mix_up = nn.Parameter(torch.zeros(5, mixer.mix_rank, width))
        self.decay = LowRank(width, mixer.decay_rank, inner, bias=True)
        self.bonus = nn.Parameter(torch.zeros(mixer.heads, mixer.key_size))

    def forward(
        self, h: Resid, first: Mixed | None, steps: Steps, tap: Tap, past: Carry
    ) -> tuple[Resid, Carry, Mixed | None]:
        last, state = past or (None, self.start)
        before = tap(HookPoint.RwkvShift, steps.shifted(h, last))
        w, k, v, r, g = self._mixes(h, before)
        low = self.decay.up(self.decay.down(w).tanh())
        decay = -split(low.float(), -1, self.keys).exp()
        out, state = self.mixed_out((r, k, v, g), decay, self.bonus, (steps, tap, state))
        return out, (steps.last(h, last), state), first

    def _mixes(self, h: Resid, before: Resid) -> tuple[Tensor, ...]:
        """What the decay, k, v, r and g read: how much of the token before depends on both."""
        x = mixed(h, before, self.mix_x, previous_first=True)
        low = split((x @ self.mix_down).tanh(), -1, (5, -1))
        more = torch.einsum("btje,jed->jbtd", low, self.mix_up)
        fixed = torch.stack([self.mix_w, self.mix_k, self.mix_v, self.mix_r, self.mix_g])
        by = fixed[:, None, None] + more
        return (h + (before - h) * by).unbind(0)
