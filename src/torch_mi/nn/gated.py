# SPDX-License-Identifier: MIT OR Apache-2.0
"""What linear attention with gates shares: projections, scaled queries, norm, gate, way out."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from torch_mi.config.linear import DeltaNet, Gla, Hgrn2, RetNet
from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.conv import Projections
from torch_mi.nn.heads import HeadRms
from torch_mi.nn.reading import read
from torch_mi.nn.recurrence import Recurrence
from torch_mi.nn.rwkv import matrix
from torch_mi.nn.shift import Steps
from torch_mi.types import Carry, Resid, split

State = Float[Tensor, "batch head d_key d_value"]


class GatedState(nn.Module):
    """A state that scaled queries read; what they read is normed, gated, and mixed."""

    def __init__(
        self,
        cfg: RecurrentConfig,
        mixer: Gla | RetNet | Hgrn2 | DeltaNet,
        *,
        kv_heads: int,
        gated: bool,
        whole: bool = False,
    ) -> None:
        """With a norm of each head, or of the `whole` width."""
        super().__init__()
        self.heads, self.key_size, self.value_size = mixer.heads, mixer.key_size, mixer.value_size
        inner = mixer.heads * mixer.value_size
        sizes = (mixer.heads * mixer.key_size, kv_heads * mixer.key_size)
        conv = None if isinstance(mixer, RetNet) else mixer.conv
        self.qkv = Projections(cfg.hidden_size, (*sizes, kv_heads * mixer.value_size), conv)
        gain, groups = (inner, 1) if whole else (mixer.value_size, mixer.heads)
        self.norm = HeadRms(mixer.heads, gain, mixer.norm_eps, groups)
        self.g = matrix(cfg.hidden_size, inner) if gated else None
        self.o = matrix(inner, cfg.hidden_size)

    @property
    def carried(self) -> int:
        """How many tensors of the carry are its own: the convolutions', and the state."""
        return self.qkv.carried + 1

    def keys(self, x: Tensor) -> Float[Tensor, "batch pos _ d_key"]:
        """Queries or keys, by head or by the heads that share them."""
        return split(x, -1, (-1, self.key_size))

    def values(self, x: Tensor) -> Float[Tensor, "batch pos _ d_value"]:
        """Values, by head or by the heads that share them."""
        return split(x, -1, (-1, self.value_size))

    def scaled(self, q: Tensor) -> Float[Tensor, "batch pos head d_key"]:
        """Queries over the root of their size."""
        return q * self.key_size**-0.5

    def read_out(
        self, turn: Recurrence, h: Resid, run: tuple[Steps, Tap, Carry]
    ) -> tuple[Resid, State]:
        """What is written to the stream, and the last state."""
        steps, tap, past = run
        y, state = read(turn, None, steps, tap, past[-1] if past else None)
        z = self.norm(tap(HookPoint.RwkvWkv, y), tap)
        if self.g is not None:
            z = z * tap(HookPoint.RwkvG, self.values(silu(self.g(h))))
        return self.o(z.flatten(2)), state
