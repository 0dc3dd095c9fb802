# SPDX-License-Identifier: MIT OR Apache-2.0
"""Knockout and steering of recurrent states: what a model says without what a token wrote.

A token writes its key and value to the state of every head of every layer. Knocked out, it writes
nothing; steered, its write is scaled. Its own output keeps what it reads of itself beside the
state, and the next token still sees it through the token shift, unless `shift` says otherwise; in
models that erase (RWKV-7, the delta rule) it still erases, unless `full` says otherwise.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor

from torch_mi.analysis.changes import Changed, Contrast, contrast, one_prompt
from torch_mi.errors import InterventionError, ModelError, did_you_mean
from torch_mi.hooks.coordinates import Place
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.hooks.states import StateKnockoutSpec, StateSteeringSpec
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Prompt
from torch_mi.results import pieces_of, position_in, text_of
from torch_mi.sweeps.grid import Coordinate, Grid
from torch_mi.sweeps.metrics import Judge, Metric
from torch_mi.sweeps.run import sweep

FORM = "torch-mi state knockout 1"
STEERING_FORM = "torch-mi state steering 1"
Axis = Literal["layer", "pos", "head"]
Numbers = int | Sequence[int]


@dataclass(frozen=True, eq=False, repr=False)
class StateAblationResult(Changed):
    """The logits at one position, with some writes to the state and without them."""

    form = FORM

    spec: StateKnockoutSpec

    @property
    def ablated_logits(self) -> Tensor:
        """The logits [vocab] without the writes."""
        return self.contrast.after

    def _made_by(self) -> dict[str, object]:
        return {"spec": spec_values(self.spec)}

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        spec = StateKnockoutSpec(**_fields(data["spec"]))
        return cls(Contrast.from_dict(data["contrast"]), spec)


@dataclass(frozen=True, eq=False, repr=False)
class StateSteeringResult(Changed):
    """The logits at one position, with some writes to the state scaled."""

    form = STEERING_FORM

    spec: StateSteeringSpec

    @property
    def steered_logits(self) -> Tensor:
        """The logits [vocab] with the writes scaled."""
        return self.contrast.after

    def _made_by(self) -> dict[str, object]:
        return {"spec": spec_values(self.spec)}

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        spec = StateSteeringSpec(**_fields(data["spec"]))
        return cls(Contrast.from_dict(data["contrast"]), spec)


def spec_values(spec: StateKnockoutSpec) -> dict[str, object]:
    """A spec, as JSON values."""
    values: dict[str, object] = asdict(spec)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}  # pyright: ignore[reportUnknownArgumentType] - any tuple


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a spec from JSON, whose lists were tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}  # pyright: ignore[reportUnknownArgumentType] - JSON


def state_knockout(  # noqa: PLR0913 - an experiment is made of choices
    model: MIModel,
    prompt: Prompt,
    positions: Numbers,
    *,
    layers: Numbers | None = None,
    heads: Numbers | None = None,
    full: bool = False,
    shift: bool = False,
    position: int = -1,
) -> StateAblationResult:
    """What one prompt's answer at `position` becomes without what tokens at `positions` wrote.

    In all layers and heads unless some are given. With `full` these tokens erase nothing either;
    with `shift` the next ones do not see them through the token shift.
    """
    places = _places(model, prompt, positions)
    spec = StateKnockoutSpec(places, _some(layers), _some(heads), full, shift)
    return StateAblationResult(
        contrast(model, prompt, HookSpec().set_state_knockout(spec), position), spec
    )


def state_steering(  # noqa: PLR0913 - an experiment is made of choices
    model: MIModel,
    prompt: Prompt,
    positions: Numbers,
    *,
    scale: float,
    layers: Numbers | None = None,
    heads: Numbers | None = None,
    full: bool = False,
    position: int = -1,
) -> StateSteeringResult:
    """What one prompt's answer becomes with the writes of tokens at `positions` times `scale`.

    0 is a knockout, 1 changes nothing, more amplifies. With `full` erasures are scaled, too.
    """
    places = _places(model, prompt, positions)
    spec = StateSteeringSpec(places, _some(layers), _some(heads), full, scale=scale)
    return StateSteeringResult(
        contrast(model, prompt, HookSpec().set_state_steering(spec), position), spec
    )


def state_sweep(  # noqa: PLR0913 - an experiment is made of choices
    model: MIModel,
    prompts: Prompt,
    metric: Metric | Judge,
    *,
    by: Sequence[Axis] = ("layer", "pos"),
    positions: Numbers | None = None,
    layers: Numbers | None = None,
    heads: Numbers | None = None,
    full: bool = False,
    shift: bool = False,
    position: Place = -1,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Grid:
    """The score without one token's write to the state, layer by layer, or by `by`.

    Axes are "layer", "pos" and "head"; along one that is not named all is knocked out at once:
    `("pos",)` takes a token out of every layer. Prompts of a list must be equally long.
    """
    needs_state(model)
    rows = batch_of(model, prompts).rows()
    length = _common_length(rows)
    axes = _axes(model, length, by, {"layer": layers, "pos": positions, "head": heads})
    whole = StateKnockoutSpec(
        _some(positions) or tuple(range(length)), _some(layers), _some(heads), full, shift
    )
    whole = replace(whole, positions=tuple(position_in(length, p) for p in whole.positions))
    specs = [
        HookSpec().set_state_knockout(_limited(whole, dict(zip(axes, place, strict=True))))
        for place in product(*axes.values())
    ]
    found = sweep(
        model,
        rows,
        specs,
        metric,
        position=position,
        checkpoint=checkpoint,
        progress=progress,
    )
    words = [pieces_of(model, row) for row in rows]
    labels = [same[0] if len(set(same)) == 1 else "…" for same in zip(*words, strict=True)]
    shown = {"pos": tuple(labels[int(i)] for i in axes["pos"])} if "pos" in axes else {}
    options = {"prompts": [text_of(model, row) for row in rows], "spec": spec_values(whole)}
    return found.grid("writes to the state knocked out", axes, shown, options)


def needs_state(model: MIModel) -> None:
    """Raise `ModelError` unless the model carries a state from token to token."""
    if HookPoint.RwkvState not in model.backend.hook_points:
        raise ModelError(
            f"{model.origin.model_id} has no recurrent state; a transformer keeps every token and "
            "looks back: knockout in torch_mi.analysis.knockout cuts attention edges"
        )


def _places(model: MIModel, prompt: Prompt, positions: Numbers) -> tuple[int, ...]:
    """Positions counted from the start."""
    needs_state(model)
    length = len(one_prompt(model, prompt))
    return tuple(position_in(length, p) for p in _some(positions) or ())


def _some(numbers: Numbers | None) -> tuple[int, ...] | None:
    if numbers is None:
        return None
    return (numbers,) if isinstance(numbers, int) else tuple(numbers)


def _common_length(rows: Sequence[list[int]]) -> int:
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1:
        raise InterventionError(
            f"a sweep over positions needs prompts of one length, these have {lengths} tokens"
        )
    return lengths[0]


def _axes(
    model: MIModel, length: int, by: Sequence[Axis], chosen: dict[Axis, Numbers | None]
) -> dict[str, tuple[Coordinate, ...]]:
    """The places along each axis that is swept."""
    counts = {"layer": model.num_layers, "pos": length, "head": model.backend.sizes["head"]}
    wrong = [axis for axis in by if axis not in counts]
    if wrong or not by or len(set(by)) < len(by):
        hint = did_you_mean(wrong[0], counts) if wrong else ""
        raise InterventionError(
            f"by={tuple(by)!r}: writes are knocked out by layer, pos or head{hint}"
        )
    found: dict[str, tuple[Coordinate, ...]] = {}
    for axis in by:
        some = _some(chosen[axis])
        places = tuple(range(counts[axis])) if some is None else some
        found[axis] = tuple(position_in(length, p) for p in places) if axis == "pos" else places
    return found


def _limited(whole: StateKnockoutSpec, place: dict[str, Coordinate]) -> StateKnockoutSpec:
    """The same knockout at one place."""
    spec = whole
    if "layer" in place:
        spec = spec.layer(int(place["layer"]))
    if "pos" in place:
        spec = replace(spec, positions=(int(place["pos"]),))
    return spec.head(int(place["head"])) if "head" in place else spec
