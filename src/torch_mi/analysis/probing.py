# SPDX-License-Identifier: MIT OR Apache-2.0
"""Linear probes: what can be read off activations by a line, layer by layer.

Logistic regression for labels, ridge regression for numbers, on standardised activations and scored
by cross-validation. A probe that is strong enough finds what it was asked for in anything; so each
is set beside a control task (Hewitt & Liang 2019): every kind of word is given a label at random,
drawn as the labels are, and the same wherever it occurs. The probe's selectivity is by how much it
does better on the task than on the control.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor

from torch_mi.analysis.geometry import Sample, activations
from torch_mi.errors import MIError, ModelError, did_you_mean
from torch_mi.hooks.point import Hook, HookPoint, locate
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, floats
from torch_mi.types import numbers

FORM = "torch-mi probes 1"
KINDS = ("logistic", "ridge")
Label = str | int | float
SKLEARN = ("linear_model", "model_selection", "pipeline", "preprocessing")
CONTROLS = ("token", "prompt", "none")


@dataclass(frozen=True)
class Probing:
    """How probes are fitted and scored."""

    kind: str = "logistic"
    """"logistic", scored by accuracy, or "ridge", scored by the variance explained (R²)."""
    penalty: float = 1.0
    """How strongly large weights are held down."""
    folds: int = 5
    control: str = "token"
    """What a control task gives one label: a "token", a "prompt", or "none" for no control."""
    seed: int = 0

    def check(self) -> None:
        """Raise `ModelError` where this cannot be done."""
        for name, value, known in (("kind", self.kind, KINDS), ("control", self.control, CONTROLS)):
            if value not in known:
                raise ModelError(
                    f"{name}={value!r} is not one of {', '.join(known)}{did_you_mean(value, known)}"
                )
        if self.folds < 2 or self.penalty <= 0:  # noqa: PLR2004 - one to fit, one to score
            raise ModelError(
                f"folds={self.folds} must be 2 or more, penalty={self.penalty} above 0"
            )


@dataclass(frozen=True, eq=False, repr=False)
class Probes(Result):
    """The scores of probes at some places, and the directions that they read."""

    form = FORM

    model_id: str
    hooks: tuple[str, ...]
    how: Probing
    scores: Tensor
    """Of every fold [place fold]: accuracy, or R² of a ridge."""
    controls: Tensor | None
    """The same on the control task."""
    chance: float
    """What always saying the commonest label (or the mean) would score."""
    classes: tuple[Label, ...]
    """The labels in the order of the directions; none for a ridge."""
    directions: Tensor
    """What a probe fitted on everything multiplies activations by [place class width].

    Of two classes, one direction: towards the second. In the units of the activations themselves.
    """
    samples: int
    manifest: Manifest

    @property
    def accuracy(self) -> Tensor:
        """The mean score of each place."""
        return self.scores.mean(1)

    @property
    def selectivity(self) -> Tensor:
        """The mean score of each place less that on the control task."""
        if self.controls is None:
            raise ModelError("selectivity needs a control task: Probing(control='token')")
        return self.accuracy - self.controls.mean(1)

    def best(self) -> tuple[str, float]:
        """The place with the highest score."""
        at = int(self.accuracy.argmax())
        return self.hooks[at], float(self.accuracy[at])

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each place (needs pandas)."""
        rows: list[dict[str, object]] = [
            {"hook": hook, "score": score, "spread": spread}
            for hook, score, spread in zip(
                self.hooks, floats(self.accuracy), floats(self.scores.std(1)), strict=True
            )
        ]
        if self.controls is not None:
            means, more = floats(self.controls.mean(1)), floats(self.selectivity)
            for row, control, selectivity in zip(rows, means, more, strict=True):
                row |= {"control": control, "selectivity": selectivity}
        return data_frame(rows)

    def to_dict(self) -> dict[str, object]:
        controls = self.controls
        return {
            "format": FORM,
            "model_id": self.model_id,
            "hooks": list(self.hooks),
            "how": asdict(self.how),
            "scores": [floats(row) for row in self.scores],
            "controls": None if controls is None else [floats(row) for row in controls],
            "chance": self.chance,
            "classes": list(self.classes),
            "directions": [[floats(row) for row in place] for place in self.directions],
            "samples": self.samples,
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        controls = data["controls"]
        return cls(
            data["model_id"],
            tuple(data["hooks"]),
            Probing(**data["how"]),
            torch.tensor(data["scores"]),
            None if controls is None else torch.tensor(controls),
            data["chance"],
            tuple(data["classes"]),
            torch.tensor(data["directions"]),
            data["samples"],
            Manifest.from_dict(data["manifest"]),
        )


def probe(
    model: MIModel,
    prompts: Prompt,
    labels: Sequence[Label] | Sequence[Sequence[Label]],
    *,
    at: str = HookPoint.ResidPost,
    position: int | Literal["all"] = -1,
    how: Probing | None = None,
) -> Probes:
    """How well labels can be read off activations, at one place or in every layer.

    A label for each prompt, of its token at `position`; with "all", one for each token of each.
    """
    how = how or Probing()
    how.check()
    place = locate(at)
    hooks = [place] if isinstance(place, Hook) else place.on(model.num_layers)
    found = activations(model, prompts, at=hooks, position=position)
    samples = found.samples
    wanted = _labels(labels, samples, each=position == "all")
    fits = [_Fit(how, rows) for rows in found.rows.values()]
    controls = None
    if how.control != "none":
        task = control_task(wanted, samples, how)
        controls = torch.tensor([fit.scores(task) for fit in fits])
    scores = torch.tensor([fit.scores(wanted) for fit in fits])
    directions = [fit.direction(wanted) for fit in fits]
    counts = [wanted.count(label) for label in set(wanted)]
    return Probes(
        model_id=model.origin.model_id,
        hooks=tuple(map(str, hooks)),
        how=how,
        scores=scores,
        controls=controls,
        chance=max(counts) / len(wanted) if how.kind == "logistic" else 0.0,
        classes=tuple(sorted(set(wanted))) if how.kind == "logistic" else (),
        directions=torch.stack(directions),
        samples=len(samples),
        manifest=found.manifest,
    )


def control_task(labels: Sequence[Label], samples: Sequence[Sample], how: Probing) -> list[Label]:
    """A label for every sample that depends on its token (or prompt) alone, drawn as labels are."""
    words = [s.token_id if how.control == "token" else s.prompt for s in samples]
    if len(set(words)) == 1:
        raise ModelError(
            f"a control task needs different tokens, and all are {samples[0].token!r} here: probe "
            "other positions, or give Probing(control='prompt') or 'none'"
        )
    dice = torch.Generator().manual_seed(how.seed)
    kinds = sorted(set(words))
    drawn = numbers(torch.randint(len(labels), (len(kinds),), generator=dice))
    given = {word: labels[i] for word, i in zip(kinds, drawn, strict=True)}
    return [given[word] for word in words]


def _labels(
    labels: Sequence[Label] | Sequence[Sequence[Label]], samples: Sequence[Sample], *, each: bool
) -> list[Label]:
    """One label for each sample."""
    flat: list[Label] = []
    for label in labels:
        if each and not isinstance(label, str | int | float):
            flat.extend(label)
        else:
            flat.append(cast("Label", label))
    if len(flat) != len(samples):
        raise ModelError(f"{len(flat)} labels for {len(samples)} samples; give one for each")
    if len({isinstance(label, str) for label in flat}) > 1:
        raise ModelError("labels are either all words or all numbers")
    if len(set(flat)) == 1:
        raise ModelError(f"all labels are {flat[0]!r}; there is nothing to tell apart")
    return flat


def _sklearn() -> Any:
    """scikit-learn, if it is installed."""
    try:
        # by name: scikit-learn is an optional extra, and hardly typed
        parts = [import_module(f"sklearn.{name}") for name in SKLEARN]
    except ImportError as cause:
        raise MIError("probes need scikit-learn: pip install torch-mi[probing]") from cause
    return SimpleNamespace(**dict(zip(SKLEARN, parts, strict=True)))


@dataclass(frozen=True, eq=False)
class _Fit:
    """Probes of one place's activations [sample width]."""

    how: Probing
    rows: Tensor
    sklearn: Any = field(default_factory=_sklearn)

    def scores(self, labels: list[Label]) -> list[float]:
        """The score of each fold."""
        how, made = self.how, self.sklearn
        if how.kind == "ridge":
            folds = made.model_selection.KFold(how.folds, shuffle=True, random_state=how.seed)
            scoring = "r2"
        else:
            self._check(labels)
            folds = made.model_selection.StratifiedKFold(
                how.folds, shuffle=True, random_state=how.seed
            )
            scoring = "accuracy"
        found = made.model_selection.cross_val_score(
            self._probe(), self.rows.numpy(), labels, cv=folds, scoring=scoring
        )
        return [float(score) for score in found]

    def direction(self, labels: list[Label]) -> Tensor:
        """The weights [class width] of a probe fitted on everything, for activations unscaled."""
        fitted = self._probe().fit(self.rows.numpy(), labels)
        weights = torch.tensor(fitted[-1].coef_).reshape(-1, self.rows.shape[1])
        return (weights / torch.tensor(fitted[0].scale_)).float()

    def _probe(self) -> Any:
        """A probe that is yet to be fitted."""
        how, made = self.how, self.sklearn
        if how.kind == "ridge":
            last = made.linear_model.Ridge(alpha=how.penalty)
        else:
            last = made.linear_model.LogisticRegression(C=1 / how.penalty, max_iter=5000)
        return made.pipeline.make_pipeline(made.preprocessing.StandardScaler(), last)

    def _check(self, labels: list[Label]) -> None:
        """Raise `ModelError` where a label is too rare to be in every fold."""
        rarest = min(set(labels), key=lambda label: (labels.count(label), str(label)))
        if labels.count(rarest) < self.how.folds or labels.count(rarest) == len(labels):
            raise ModelError(
                f"{self.how.folds} folds need as many samples of each label, and there are "
                f"{labels.count(rarest)} of {rarest!r} in the task or its control; give more "
                "prompts, fewer folds, or another seed"
            )
