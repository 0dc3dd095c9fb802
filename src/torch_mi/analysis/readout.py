# SPDX-License-Identifier: MIT OR Apache-2.0
"""How the heads of a recurrent layer write what they read, with denominators and gates held.

What is read then goes to the residual stream by a linear map of its own at every position, so each
head, and each token that a head reads from, has its own share.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_mi.errors import ModelError
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.model import MIModel

P = HookPoint


def readout_points(model: MIModel, layer: int) -> list[Hook]:
    """What a run must capture for `readout` in one layer; nothing if it has no state."""
    points = model.backend.layer_points(layer)
    if P.RwkvWkv not in points:
        return []
    written = model.backend.mixed_written(layer)
    gate = set[HookPoint]() if written is None or written.gate is None else {written.gate}
    wanted = {P.RwkvWkv, P.RwkvNormScale, P.RwkvBonus} | gate
    return [point(layer) for point in sorted(wanted & points)]


@dataclass(frozen=True, eq=False)
class Readout:
    """The map from what heads read to the residual stream, at some positions."""

    matrix: Tensor
    """[d_model head d_value]"""
    before: Tensor | None
    """What reads [pos head d_value] are multiplied by before their mean is taken off."""
    centred: bool
    after: Tensor
    """What they are multiplied by after that [pos head d_value]."""
    plain: Tensor
    """What goes through the matrix beside what is read [pos head d_value]: the norm's bias."""
    bonus: Tensor | None
    """What a token reads of itself beside the state, where it is added after the norm."""
    bias: Tensor | None
    """What is added to the stream [d_model] at the end."""

    def held(self, read: Tensor) -> Tensor:
        """What of reads [… pos head d_value] goes through the matrix."""
        read = read if self.before is None else read * self.before
        read = read - read.mean(-1, keepdim=True) if self.centred else read
        return read * self.after

    def only(self, i: int) -> "Readout":
        """The same at one of the positions."""
        here = slice(i, i + 1)
        return replace(
            self,
            before=None if self.before is None else self.before[here],
            after=self.after[here],
            plain=self.plain[here],
            bonus=None if self.bonus is None else self.bonus[here],
        )

    def bonus_held(self, bonus: Tensor | None) -> Tensor:
        """What a token reads of itself beside the state [pos head d_value], as it is written.

        `bonus` is what is at `RwkvBonus`, where it is part of what is read.
        """
        if self.bonus is not None:
            return self.bonus
        return torch.zeros_like(self.after) if bonus is None else self.held(bonus)

    def heads(self, read: Tensor) -> Tensor:
        """What each head writes [head pos d_model] of what it reads [pos head d_value]."""
        whole = self.held(read)
        whole = whole if self.bonus is None else whole + self.bonus
        return torch.einsum("phv,dhv->hpd", whole, self.matrix)

    def written(self, x: Tensor) -> Tensor:
        """What heads write together [… d_model] of what goes through the matrix."""
        return x.flatten(-2) @ self.matrix.flatten(1).T

    def constant(self) -> Tensor:
        """What is written whatever is read [pos d_model]."""
        out = self.written(self.plain)
        return out if self.bias is None else out + self.bias


def readout(
    model: MIModel, layer: int, cache: Mapping[str, Tensor], places: tuple[int, ...]
) -> Readout:
    """The readout of one layer at these positions of a run's one prompt, in double precision."""
    written = model.backend.mixed_written(layer)
    if written is None:
        raise ModelError(
            f"what layer {layer} makes of what it reads does not come apart here: that is known "
            "for RWKV alone; AttnOut is the whole of it"
        )

    def at(point: HookPoint) -> Tensor:
        return cache[point(layer)][0, list(places)].double()

    one = torch.ones_like(at(P.RwkvWkv))
    gate = one if written.gate is None else at(written.gate).expand_as(one)
    late = one if written.gated_first else gate
    after, plain, norm = late, torch.zeros_like(one), written.norm
    if norm is not None:
        after = late * norm.gain.double() / at(P.RwkvNormScale)
        plain = plain if norm.bias is None else late * norm.bias.double()
    return Readout(
        written.matrix.double(),
        gate if written.gated_first else None,
        norm is not None and norm.centred,
        after,
        plain,
        late * at(P.RwkvBonus) if written.bonus_after else None,
        None if written.bias is None else written.bias.double(),
    )
