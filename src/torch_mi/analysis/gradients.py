# SPDX-License-Identifier: MIT OR Apache-2.0
"""Gradients: how a score moves with every activation, from one forward and one backward.

The tokens' embeddings are what is differentiated through; parameters are not, so nothing is
accumulated in them. Only the rows that the metric reads are unembedded.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.cache import HookCache
from torch_mi.errors import HookError, InterventionError, ModelError, did_you_mean
from torch_mi.hooks.coordinates import At, Frame, Place, Text, select
from torch_mi.hooks.interventions import Intervention
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel, batch_of
from torch_mi.partial import hooks_of
from torch_mi.prompts import Batch, Prompt, spelt
from torch_mi.results import Result, data_frame, floats, pieces_of
from torch_mi.sweeps.metrics import Judge, Metric, as_metric
from torch_mi.types import numbers

FORM = "torch-mi gradients 1"
STARTS = (HookPoint.Embed, HookPoint.PosEmbed)


@dataclass(frozen=True, eq=False, repr=False)
class Gradients(Result):
    """Activations, and the gradient of each prompt's score at them; both by hook.

    Prompts of different lengths are padded on the left: the i-th token from the end is the i-th
    column from the end.
    """

    form = FORM

    metric: str
    values: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    scores: Tensor
    """The score of each prompt [prompt]."""
    tokens: tuple[tuple[str, ...], ...]
    """The tokens of each prompt."""
    manifest: Manifest

    def value(self, where: str) -> Tensor:
        """The activation at a place."""
        return self.values[self._hook(where)]

    def gradient(self, where: str) -> Tensor:
        """The gradient at a place."""
        return self.gradients[self._hook(where)]

    def sizes(self, prompt: int = 0) -> dict[str, Tensor]:
        """How long the gradient is at each token [pos] of a prompt, by hook.

        For scores and patterns, at each query; for what has no positions, nothing.
        """
        length, found = len(self.tokens[prompt]), dict[str, Tensor]()
        for name, gradient in self.gradients.items():
            axes = Hook.parse(name).point.axes[1:]
            axis = next((i for i, a in enumerate(axes) if a in ("pos", "query")), None)
            if axis is not None:
                rows = gradient[prompt].float().movedim(axis, 0)[-length:].flatten(1)
                found[name] = rows.square().sum(1).sqrt()
        return found

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each hook, prompt and token (needs pandas)."""
        return data_frame(
            [
                {"hook": str(name), "prompt": i, "pos": pos, "token": token, "size": size}
                for i, words in enumerate(self.tokens)
                for name, sizes in self.sizes(i).items()
                for pos, (token, size) in enumerate(zip(words, floats(sizes), strict=True))
            ]
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "metric": self.metric,
            "scores": floats(self.scores),
            "tokens": [list(words) for words in self.tokens],
            "hooks": {
                str(name): {
                    "shape": list(value.shape),
                    # -inf, where the mask is, is no number of JSON's
                    "values": [None if v == -torch.inf else v for v in floats(_flat(value))],
                    "gradients": floats(_flat(self.gradients[name])),
                }
                for name, value in self.values.items()
            },
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        def read(what: str) -> dict[str, Tensor]:
            found = dict[str, Tensor]()
            for name, of in data["hooks"].items():
                entries = [-torch.inf if v is None else v for v in of[what]]
                found[Hook.parse(name)] = torch.tensor(entries).reshape(of["shape"])
            return found

        return cls(
            data["metric"],
            read("values"),
            read("gradients"),
            torch.tensor(data["scores"]),
            tuple(tuple(words) for words in data["tokens"]),
            Manifest.from_dict(data["manifest"]),
        )

    def _hook(self, where: str) -> Hook:
        hook = Hook.parse(where)
        if hook not in self.values:
            raise HookError(f"no gradient at {hook!r}{did_you_mean(hook, list(self.values))}")
        return hook


def gradients(
    model: MIModel,
    prompts: Prompt,
    metric: Metric | Judge,
    *,
    at: str | Iterable[str],
    spec: HookSpec | None = None,
    position: Place = -1,
) -> Gradients:
    """Activations `at` places, and the gradient of each prompt's score at them.

    A place without a layer means every layer; whole numbers, as which experts were chosen, are
    left out. The run is that with `spec`. Scores are read at `position`, the last unless given;
    of several positions the mean is taken.
    """
    batch = batch_of(model, prompts)
    hooks = differentiable(model, [at] if isinstance(at, str) else at)
    count = len(batch.tokens)
    reading = Reading(model, batch, as_metric(metric), position, tuple(range(count)), count)
    found = slopes(reading, hooks, spec)
    return Gradients(
        metric=repr(reading.metric),
        values={hook: value.detach() for hook, value in found.values.items()},
        gradients=found.gradients,
        scores=found.scores,
        tokens=tuple(pieces_of(model, row) for row in batch.rows()),
        manifest=found.run.manifest,
    )


@dataclass(frozen=True, eq=False)
class Reading:
    """Prompts as one batch, and what their score is: of which metric, read where."""

    model: MIModel
    batch: Batch
    metric: Metric
    position: Place
    items: tuple[int, ...]
    """Which of the prompts of the whole dataset these are."""
    count: int
    """How many prompts the whole dataset has."""

    def places(self) -> list[list[int]]:
        """The columns at which each row is read."""
        return [self._places(row) for row in self.batch.rows()]

    def _places(self, row: list[int]) -> list[int]:
        def text(_: int) -> Text:
            return spelt(self.model.tokenizer, row)

        said = text if self.model.has_tokenizer else None
        layers = range(self.model.num_layers)
        frame = Frame(1, len(row), 0, self.model.backend.sizes, layers, None, said)
        found = select(At(pos=self.position), HookPoint.ResidPre, frame)
        if found is None:
            raise InterventionError(f"position={self.position!r} is not in the prompt")
        columns = torch.arange(len(row))[None] + self.batch.shape[1] - len(row)
        return numbers(columns[found.index[:2]].flatten())

    def logits(self, run: HookCache, *, ended: bool) -> list[Tensor]:
        """The logits [read vocab] of each row, of a run that `ended` or stopped before them."""
        places = self.places()
        x = run.output if ended else run.residual.x
        rows = [x[i, torch.tensor(where, device=x.device)] for i, where in enumerate(places)]
        if ended:
            return rows
        # one row of each prompt is all that goes through the unembedding
        logits = self.model.project_to_vocab(torch.cat(rows))
        return list(torch.split(logits, [len(row) for row in rows]))

    def metrics(self, logits: Sequence[Tensor]) -> list[list[Metric]]:
        """The metric of each place that is read, where these are the plain run's logits."""
        return [
            [self.metric.of(item, self.count, place.detach()) for place in rows]
            for item, rows in zip(self.items, logits, strict=True)
        ]

    def scores(self, logits: Sequence[Tensor], metrics: Sequence[Sequence[Metric]]) -> Tensor:
        """The score of each row [row]."""
        each = [
            torch.cat([m.score(self.model, place[None]) for m, place in zip(ms, rows, strict=True)])
            for ms, rows in zip(metrics, logits, strict=True)
        ]
        return torch.stack([score.float().mean() for score in each])


@dataclass(frozen=True, eq=False)
class Slopes:
    """A run's activations, the gradients at them, and the scores [row] they are gradients of."""

    values: dict[str, Tensor]
    gradients: dict[str, Tensor]
    scores: Tensor
    run: HookCache


def slopes(
    reading: Reading,
    hooks: Sequence[Hook],
    spec: HookSpec | None = None,
    metrics: Sequence[Sequence[Metric]] | None = None,
) -> Slopes:
    """The gradient of every row's score at `hooks`, from one forward and one backward.

    `metrics` are those of each row, where they are not to be taken from this very run.
    """
    model = reading.model
    for hook in hooks:
        if hook.point.stepwise:
            raise InterventionError(
                f"there is no gradient at {hook!r}: a run hands its state over token by token, and "
                "goes on without what was kept; RwkvWrite, RwkvW, RwkvK and RwkvWkv have gradients"
            )
    full = HookSpec() if spec is None else spec.copy()
    full.capture(*hooks)
    ended = any(map(_at_the_end, (*full.captures["after"], *(place for place, _ in full.edits))))
    full.intervene(HookPoint.Embed, Leaf())
    if HookPoint.PosEmbed in hooks:
        full.intervene(HookPoint.PosEmbed, Leaf())
    stop = None if ended else model.num_layers
    run = model.forward(reading.batch.rows(), full, stop=stop, grad=True)
    # whole numbers, as which experts were chosen, have no gradient
    values = {hook: run[hook] for hook in hooks if run[hook].is_floating_point()}
    for hook, value in values.items():
        if not value.requires_grad:
            raise InterventionError(
                f"there is no gradient at {hook!r}: the spec puts fixed values in place of all "
                "that comes before it"
            )
    with torch.enable_grad():
        logits = reading.logits(run, ended=ended)
        scores = reading.scores(logits, metrics or reading.metrics(logits))
    if not scores.requires_grad:
        raise ModelError(f"{reading.metric!r} has no gradient; use one that moves with the logits")
    found = torch.autograd.grad(scores.sum(), list(values.values()), materialize_grads=True)
    return Slopes(
        {**values},
        dict(zip(values, found, strict=True)),
        scores.detach().cpu(),
        run,
    )


@dataclass(frozen=True, eq=False, repr=False)
class Leaf(Intervention):
    """Begin differentiating here: the same values, with nothing before them."""

    def edit(self, x: Tensor, hook: Hook) -> Tensor:  # noqa: ARG002
        return x.detach().requires_grad_()


def differentiable(model: MIModel, at: Iterable[str]) -> list[Hook]:
    """The hooks that places mean."""
    spec = HookSpec().capture(*at)
    hooks = [hook for place in spec.captures["after"] for hook in hooks_of(model, place)]
    if not hooks:
        raise HookError("gradients need a place, as HookPoint.ResidPost")
    return list(dict.fromkeys(hooks))


def _flat(x: Tensor) -> Tensor:
    return x.float().flatten()


def _at_the_end(place: Hook | HookPoint) -> bool:
    """Whether a place is after the last layer."""
    point = place if isinstance(place, HookPoint) else place.point
    return not point.per_layer and point not in STARTS
