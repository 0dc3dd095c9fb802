# SPDX-License-Identifier: MIT OR Apache-2.0
"""The delta rule (Schlag et al. 2021; Yang et al. 2024, arXiv:2406.06484)."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import elu, relu, silu

from torch_mi.config.linear import DeltaNet, KeyActivation, KeyNorm
from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.gated import GatedState
from torch_mi.nn.reading import all_of, faded
from torch_mi.nn.recurrence import Recurrence
from torch_mi.nn.rwkv import matrix
from torch_mi.nn.shift import Steps
from torch_mi.types import Carry, Mixed, Resid

SMALLEST = 1e-6
"""Added to the squared length of queries and keys."""


class DeltaNetMix(GatedState):
    """A key finds its old value in the state, and as much of that as the rate says is replaced.

    What is written, rate x key, and what is erased, under the key of unit length, are edited apart.
    """

    def __init__(self, cfg: RecurrentConfig, mixer: DeltaNet, layer: int) -> None:  # noqa: ARG002
        super().__init__(cfg, mixer, kv_heads=mixer.heads, gated=mixer.gated)
        self.mixer = mixer
        self.rate = matrix(cfg.hidden_size, mixer.heads) if mixer.rated else None

    def forward(
        self, h: Resid, first: Mixed | None, steps: Steps, tap: Tap, past: Carry
    ) -> tuple[Resid, Carry, Mixed | None]:
        (q, k, v), kept = self.qkv(h, steps, tap, past[:-1])
        q, k = (self._normed(self.keys(self._active(x))) for x in (q, k))
        q = tap(HookPoint.RwkvR, self.scaled(q))
        kappa = tap(HookPoint.RwkvKappa, k.view_as(k))
        rate = tap(HookPoint.RwkvA, self._rate(h, k))
        k = tap(HookPoint.RwkvK, k * rate)
        v = tap(HookPoint.RwkvV, self.values(silu(v)))
        still = k.new_zeros(1, 1, self.heads, 1).float()
        decay = faded(still, tap, k)
        turn = Recurrence(q, k, v, decay, inclusive=True, alpha=kappa, beta=-kappa * rate)
        out, state = self.read_out(turn, h, (steps, tap, past))
        return out, (*kept, state), first

    def _active(self, x: Tensor) -> Tensor:
        match self.mixer.activation:
            case KeyActivation.Silu:
                return silu(x)
            case KeyActivation.Relu:
                return relu(x)
            case KeyActivation.EluPlusOne:
                return elu(x) + 1
            case KeyActivation.Identity:
                return x

    def _normed(self, x: Mixed) -> Mixed:
        """Queries or keys of length one, or of sum one."""
        if self.mixer.norm is KeyNorm.Sum:
            return x / x.sum(-1, keepdim=True)
        h = x.float()
        return (h / (h.square().sum(-1, keepdim=True) + SMALLEST).sqrt()).to(x)

    def _rate(self, h: Resid, like: Mixed) -> Float[Tensor, "batch pos head d_key"]:
        """How much is replaced, the same in all dimensions of a key."""
        rate = all_of(like) if self.rate is None else self.rate(h).sigmoid()
        return (rate * self.mixer.most_rate)[..., None].expand(like.shape)
