# SPDX-License-Identifier: MIT OR Apache-2.0
"""Path patching: what one part tells another directly, and whether the answer hangs on it.

A sender's output from another prompt changes what a receiver reads by exactly that difference, if
every head and MLP between them stays as it was. The receiver is given this input, everything after
it runs as usual, and the answer is scored (Wang et al. 2022; Goldowsky-Dill et al. 2023).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from torch_mi.analysis.patching import Direction, Pairs, read_pairs
from torch_mi.cache import HookCache, Residual
from torch_mi.errors import InterventionError
from torch_mi.hooks.coordinates import At, Place
from torch_mi.hooks.interventions import Replace
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.prompts import Prompt
from torch_mi.sweeps.grid import Coordinate, Grid
from torch_mi.sweeps.metrics import Judge, Metric
from torch_mi.sweeps.run import sweep

Senders = Literal["heads", "mlps"]
Kind = Literal["q", "k", "v", "mlp", "logits"]
READS = {"q": HookPoint.AttnQIn, "k": HookPoint.AttnKIn, "v": HookPoint.AttnVIn}


@dataclass(frozen=True)
class Receiver:
    """What reads: a head's queries, keys or values, an MLP, or the logits.

    `head` counts key/value heads at "k" and "v".
    """

    kind: Kind
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        if self.kind == "logits":
            return "logits"
        return f"{self.kind}{self.layer}" + ("" if self.head is None else f".{self.head}")

    @property
    def point(self) -> HookPoint:
        """Where it reads."""
        if self.kind == "logits":
            return HookPoint.ResidPost
        return HookPoint.MlpIn if self.kind == "mlp" else READS[self.kind]

    def hook(self, model: MIModel) -> Hook:
        """Where it reads, in a model."""
        return self.point(model.num_layers - 1 if self.layer is None else self.layer)

    def check(self, model: MIModel) -> None:
        """Raise `InterventionError` unless a model has this."""
        named = (self.layer is not None, self.head is not None)
        wanted = {"logits": (False, False), "mlp": (True, False)}.get(self.kind, (True, True))
        if named != wanted:
            raise InterventionError(
                f"{self!r}: logits have no layer, an MLP has a layer, a head a layer and a number"
            )
        if self.hook(model) not in model.hooks:
            raise InterventionError(f"{self}: this model has no {self.hook(model)!r}")
        heads = model.num_heads if self.kind == "q" else model.num_kv_heads
        if self.head is not None and not 0 <= self.head < heads:
            raise InterventionError(
                f"{self}: head {self.head} is out of range: there are {heads} for {self.kind}"
            )


LOGITS = Receiver("logits")


def path_patch(  # noqa: PLR0913 - an experiment is made of choices
    model: MIModel,
    clean: Prompt,
    corrupted: Prompt,
    *,
    metric: Metric | Judge,
    receivers: Sequence[Receiver] = (LOGITS,),
    senders: Senders = "heads",
    direction: Direction = "denoising",
    position: Place = -1,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Grid:
    """The score with each sender's message to all of `receivers` taken from the twin prompt.

    Senders are every head (by layer and head) or every MLP (by layer). "denoising" puts the clean
    prompt's messages into the corrupted run, "noising" the other way round. A sender that comes
    after all receivers tells them nothing: its score is that of the run without edits.
    """
    pairs = read_pairs(model, clean, corrupted, direction)
    if senders not in ("heads", "mlps") or not receivers:
        raise InterventionError(
            f"senders={senders!r}: they are 'heads' or 'mlps'; and at least one receiver listens"
        )
    for receiver in receivers:
        receiver.check(model)
    layers = _layers(model, senders)

    def specs(i: int) -> Iterator[HookSpec]:
        paths = Paths.of(model, pairs, i, senders, receivers)
        for layer in layers:
            for message in paths.messages(layer):
                yield paths.told(layer, message)

    found = sweep(
        model,
        pairs.runs,
        specs,
        metric,
        position=position,
        checkpoint=checkpoint,
        progress=progress,
    )
    plain = sweep(
        model, pairs.source.rows(), [HookSpec()], metric, position=position, progress=False
    )
    axes: dict[str, tuple[Coordinate, ...]] = {"layer": layers}
    if senders == "heads":
        axes["head"] = tuple(range(model.num_heads))
    heard = ", ".join(map(str, receivers))
    options = {"senders": senders, "receivers": list(map(str, receivers)), "direction": direction}
    grid = found.grid(f"{senders} → {heard}, directly", axes, None, pairs.said(model) | options)
    return replace(grid, reference=plain.baseline, noising=pairs.noising)


@dataclass(frozen=True, eq=False)
class Paths:
    """Two runs of a pair of prompts, and who tells whom."""

    model: MIModel
    edited: HookCache
    source: HookCache
    senders: Senders
    receivers: Sequence[Receiver]

    @staticmethod
    def of(
        model: MIModel, pairs: Pairs, i: int, senders: Senders, receivers: Sequence[Receiver]
    ) -> "Paths":
        """The runs of the i-th pair."""
        sent = HookPoint.AttnZ if senders == "heads" else HookPoint.MlpOut
        mids = [HookPoint.ResidMid] if any(r.kind == "mlp" for r in receivers) else []
        outs = [HookPoint.AttnOut] if senders == "heads" else []
        spec = HookSpec().capture(HookPoint.ResidPre, HookPoint.ResidPost, sent, *mids, *outs)
        edited, source = (
            model.forward(torch.tensor([batch.rows()[i]]), each, stop=model.num_layers)
            for batch, each in ((pairs.edited, spec), (pairs.source, HookSpec().capture(sent)))
        )
        return Paths(model, edited, source, senders, receivers)

    def messages(self, layer: int) -> Iterator[Tensor]:
        """What each sender of a layer adds to the stream [1 pos d_model], beyond what it did."""
        if self.senders == "mlps":
            point = HookPoint.MlpOut(layer)
            yield self.source[point] - self.edited[point]
            return
        each = self._heads(layer)
        yield from (each[i : i + 1] for i in range(len(each)))

    def _heads(self, layer: int) -> Tensor:
        """The same for all heads of a layer [head pos d_model].

        The layer is run with one head changed in each row, for its output may be normed as a whole.
        """
        heads, point = self.model.num_heads, HookPoint.AttnZ(layer)
        enters = self.edited[HookPoint.ResidPre(layer)]
        spec = HookSpec().capture(HookPoint.AttnOut(layer))
        for head in range(heads):
            z = self.source[point][0, :, head]
            spec.intervene(point, Replace(z, at=At(batch=head, head=head)))
        start = Residual(layer, enters.expand(heads, -1, -1))
        run = self.model.forward(start, spec, stop=layer + 1)
        return run[HookPoint.AttnOut(layer)] - self.edited[HookPoint.AttnOut(layer)]

    def told(self, layer: int, message: Tensor) -> HookSpec:
        """The edits that give a message to all receivers that come after its sender."""
        spec = HookSpec()
        for receiver in self.receivers:
            hook = receiver.hook(self.model)
            stream = self._read(receiver, layer)
            if stream is None:
                continue
            value, at = stream + message, None
            if receiver.kind != "logits" and hook.layer is not None:
                point = HookPoint.MlpIn if receiver.kind == "mlp" else HookPoint.AttnIn
                value = self.model.backend.normed(hook.layer, point, value)
                at = None if receiver.head is None else At(head=receiver.head)
            spec.intervene(hook, Replace(value, at=at))
        return spec

    def _read(self, receiver: Receiver, sender: int) -> Tensor | None:
        """The stream that a receiver reads, if a sender's output is in it."""
        layer = receiver.layer
        if layer is None:
            return self.edited[HookPoint.ResidPost(self.model.num_layers - 1)]
        if receiver.kind == "mlp" and not self.model.backend.parallel:
            heard = sender <= layer if self.senders == "heads" else sender < layer
            return self.edited[HookPoint.ResidMid(layer)] if heard else None
        return self.edited[HookPoint.ResidPre(layer)] if sender < layer else None


def _layers(model: MIModel, senders: Senders) -> tuple[int, ...]:
    """The layers that have such senders."""
    point = HookPoint.AttnZ if senders == "heads" else HookPoint.MlpOut
    found = [hook.layer for hook in model.hooks if hook.point is point]
    if not found:
        raise InterventionError(f"this model has no {senders}")
    return tuple(layer for layer in found if layer is not None)
