# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tour of a recurrent model: what a state gives back, and the write an answer depends on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from torch import Tensor

from torch_mi.analysis.effective import EffectiveAttention, effective_attention, formed
from torch_mi.analysis.tour_steps import (
    PAIRS,
    Cut,
    Pair,
    Paths,
    Tour,
    known_pairs,
    lens_of,
    patched_stream,
    worst_cut,
)
from torch_mi.cache import HookCache
from torch_mi.errors import ModelError
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.hook import Hook
from torch_mi.hooks.interventions import Replace
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.hooks.states import StateKnockoutSpec
from torch_mi.model import MIModel
from torch_mi.results import floats, pieces_of
from torch_mi.sweeps.grid import Grid
from torch_mi.sweeps.metrics import prob
from torch_mi.sweeps.run import score_cells
from torch_mi.types import numbers

NEEDED = (HookPoint.RwkvEffectiveAttn, HookPoint.RwkvWrite, HookPoint.ResidPre)
"""Where a recurrent model is looked at and edited on its tour."""


@dataclass(frozen=True, eq=False)
class StateReading:
    """What the last token of a prompt reads from the state of one head."""

    weights: EffectiveAttention
    """How much every token reads of what each earlier one wrote, in this head alone."""
    layer: int
    head: int | None
    """`None` where heads are single channels, whose mean is shown."""
    asked: tuple[int, ...]
    """The positions in which the prompt differs from its twin."""
    shares: Tensor
    """Of each head [layer head], the part of the last token's weights, without sign, that falls on
    those positions."""

    @property
    def share(self) -> float:
        """The share of this head, the highest of all."""
        return float(self.shares.max())

    @property
    def chance(self) -> float:
        """The share of a head that reads evenly of all tokens."""
        return len(self.asked) / len(self.weights.tokens)

    @property
    def row(self) -> list[float]:
        """How much the last token reads of each."""
        return self.weights.from_position(self.layer, -1)

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values."""
        return {
            "layer": self.layer,
            "head": self.head,
            "asked": list(self.asked),
            "share": self.share,
            "chance": self.chance,
            "shares": [floats(row) for row in self.shares],
            "weights": self.weights.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class StateTour(Tour):
    """All that is seen on the way through a recurrent model."""

    form = "torch-mi state tour 1"

    reading: StateReading
    whole: Grid | None
    """The same as `patched`, with all that enters a layer put in; `None` if that is no more."""

    def _own(self) -> dict[str, object]:
        whole = None if self.whole is None else self.whole.to_dict()
        return {"reading": self.reading.to_dict(), "whole_stream": whole}


def state_tour(model: MIModel, pairs: Sequence[tuple[str, str]] = PAIRS) -> StateTour:
    """The tour of a recurrent model."""
    missing = [point.name for point in NEEDED if point not in model.backend.hook_points]
    if missing:
        raise ModelError(
            f"the tour of a recurrent model looks at {', '.join(missing)}, "
            f"which {model.origin.model_id} does not have"
        )
    shown = known_pairs(model, pairs)
    return StateTour(
        model_id=model.origin.model_id,
        lenses=tuple(lens_of(model, pair) for pair in shown),
        pair=shown[0],
        cut=cut_writes(model, shown[0]),
        patched=patched_stream(model, shown[0]),
        reading=clearest_reading(model, shown[0]),
        whole=patched_whole(model, shown[0]),
    )


def clearest_reading(model: MIModel, pair: Pair) -> StateReading:
    """The head whose last token reads most, for its size, of the words that decide the answer."""
    ids, others = (model.encode(text)[0] for text in (pair.clean, pair.corrupted))
    asked = numbers((ids != others).nonzero()[:, 0])
    every = effective_attention(model, pair.clean)
    shares = formed(every.patterns, "abs_l1")[:, :, -1, asked].sum(-1)
    layer, i = divmod(int(shares.argmax()), shares.shape[1])
    head = every.heads[i]
    return StateReading(
        weights=replace(
            every, layers=(layer,), heads=(head,), patterns=every.of(layer, head)[None, None]
        ),
        layer=layer,
        head=None if every.averaged else head,
        asked=tuple(asked),
        shares=shares,
    )


def cut_writes(model: MIModel, pair: Pair) -> Cut:
    """Keep each token from writing to a layer's state; keep what the answer misses most."""
    sizes = model.backend.sizes
    channels = sizes["d_value"] == 1  # no heads to speak of
    heads = 0 if channels else sizes["head"]
    title = "one token's write to the state of a layer knocked out"
    return worst_cut(model, pair, Paths(unwritten, heads, title, "pos", {}))


def unwritten(layer: int, pos: int, head: int | None = None) -> HookSpec:
    """A spec that keeps a token from writing to the state of a layer."""
    heads = None if head is None else (head,)
    return HookSpec().set_state_knockout(StateKnockoutSpec((pos,), (layer,), heads))


def patched_whole(model: MIModel, pair: Pair) -> Grid | None:
    """The answer's probability with all that enters a layer at one token of the clean run put in.

    That is the residual stream and, in RWKV-7, what every later layer reads of the first.
    """
    layers = range(model.num_layers)
    if not any(model.backend.stream_points(layer)[1:] for layer in layers):
        return None
    flowing = [flowing_from(model, layer) for layer in layers]
    every = dict.fromkeys(hook for hooks in flowing for hook in hooks)
    run = model.forward(pair.clean, HookSpec().capture(*every))
    tokens = model.encode(pair.corrupted)
    axes = {"layer": tuple(layers), "pos": tuple(range(tokens.shape[1]))}
    specs = [exchanged(run, flowing[layer], pos) for layer, pos in product(*axes.values())]
    scored = score_cells(model, tokens, specs, prob(pair.answer.token_id))
    labels = {"pos": pieces_of(model, numbers(tokens[0]))}
    options = {"clean": pair.clean, "corrupted": pair.corrupted}
    title = "all that enters a layer in the clean prompt, put into the corrupted one"
    grid = scored.grid(title, axes, labels, options)
    return replace(grid, metric=pair.metric, reference=pair.answer.probability)


def flowing_from(model: MIModel, layer: int) -> list[Hook]:
    """What enters a layer: the stream, and what it and later layers read beside it."""
    later = range(layer, model.num_layers)
    beside = model.backend.stream_points(layer)[1:]
    return [HookPoint.ResidPre(layer), *(point(i) for i in later for point in beside)]


def exchanged(run: HookCache, hooks: Sequence[Hook], pos: int) -> HookSpec:
    """A spec that puts a run's activations at one position in the place of another's."""
    spec = HookSpec()
    for hook in hooks:
        spec.intervene(hook, Replace(run[hook][:, pos], at=At(pos=pos)))
    return spec
