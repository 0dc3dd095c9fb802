# SPDX-License-Identifier: MIT OR Apache-2.0
"""Causal tracing: spoil the subject of a sentence with noise, then give back one place at a time.

The noise is Gaussian, three times as wide as the embeddings are, and drawn several times. Where the
clean run's activation brings the answer back, what makes the answer passes through (Meng et al.
2022). One layer of the residual stream is given back at a time; of attention and MLPs, whose single
layers do little, a window of layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.changes import one_prompt
from torch_mi.cache import HookCache
from torch_mi.errors import InterventionError, did_you_mean
from torch_mi.hooks.coordinates import At, Place, select
from torch_mi.hooks.interventions import Add, Replace
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.partial import record
from torch_mi.prompts import Prompt
from torch_mi.results import Result, pieces_of, text_of
from torch_mi.sweeps.grid import Coordinate, Grid
from torch_mi.sweeps.metrics import Judge, Metric, prob
from torch_mi.sweeps.reach import frame_of
from torch_mi.sweeps.result import SweepResult
from torch_mi.sweeps.run import sweep
from torch_mi.types import numbers

FORM = "torch-mi causal trace 1"
POINTS = {
    "resid": HookPoint.ResidPre,
    "attn": HookPoint.AttnOut,
    "mlp": HookPoint.MlpOut,
}
"""What is given back: the stream entering a layer, or what attention or the MLP adds to it."""
WIDTH = 3.0
"""Standard deviations of the embeddings."""
MANY = 16_384
"""Embeddings whose spread is measured, if there are more."""


@dataclass(frozen=True, eq=False, repr=False)
class CausalTrace(Result):
    """The score with the subject spoilt and one place given back, by kind, layer and position."""

    form = FORM

    grid: Grid
    """Axes kind, layer, pos; the baseline is the spoilt run, the reference the clean one."""
    subject: tuple[int, ...]
    """The positions that were spoilt."""
    noise: float
    """The standard deviation of the noise."""
    samples: int
    seed: int
    window: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """What was given back."""
        return tuple(str(kind) for kind in self.grid.axes["kind"])

    def restored(self, kind: str) -> Grid:
        """The scores for one kind, by layer and position."""
        if kind not in self.kinds:
            raise InterventionError(
                f"this trace has no {kind!r}, it has {', '.join(self.kinds)}"
                f"{did_you_mean(kind, self.kinds)}"
            )
        return self.grid.at("kind", kind)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each place (needs pandas)."""
        return self.grid.to_pandas()

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "grid": self.grid.to_dict(),
            "subject": list(self.subject),
            "noise": self.noise,
            "samples": self.samples,
            "seed": self.seed,
            "window": self.window,
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            Grid.from_dict(data["grid"]),
            tuple(data["subject"]),
            data["noise"],
            data["samples"],
            data["seed"],
            data["window"],
        )


def causal_trace(  # noqa: PLR0913 - an experiment is made of choices
    model: MIModel,
    prompt: Prompt,
    subject: Place,
    *,
    metric: Metric | Judge | None = None,
    kinds: Sequence[str] = ("resid", "attn", "mlp"),
    window: int = 10,
    samples: int = 10,
    width: float = WIDTH,
    seed: int = 0,
    position: Place = -1,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> CausalTrace:
    """Where the answer comes back when the embeddings of `subject` are spoilt with noise.

    `subject` is positions, or text: `Span("the Space Needle")`. The score is the probability of the
    model's own answer unless `metric` says otherwise. The noise has `width` times the standard
    deviation of the embeddings and is drawn `samples` times from `seed`; scores are means. Of
    "attn" and "mlp", `window` layers around each layer are given back, or a third of all layers
    if that is fewer.
    """
    _check(kinds, samples, window)
    ids = one_prompt(model, prompt)
    tokens = torch.tensor([ids])
    spoilt = _positions(model, tokens, subject)
    clean = model.forward(tokens, HookSpec().capture(*(POINTS[kind] for kind in kinds)))
    answer = int(clean.output[0, -1].argmax())
    judge = prob(answer) if metric is None else metric
    span = min(window, max(1, model.num_layers // 3))
    wide = width * embedding_spread(model)
    dice = torch.Generator().manual_seed(seed)
    noises = torch.randn(samples, len(spoilt), model.hidden_size, generator=dice) * wide
    wheres = [
        (kind, _window(layer, 1 if kind == "resid" else span, model.num_layers), pos)
        for kind in kinds
        for layer in range(model.num_layers)
        for pos in range(len(ids))
    ]

    def specs(i: int) -> Iterator[HookSpec]:
        noise = Add(noises[i].to(model.dtype), at=At(pos=spoilt))
        yield HookSpec().intervene(HookPoint.Embed, noise)
        for kind, some, pos in wheres:
            spec = HookSpec().intervene(HookPoint.Embed, noise)
            yield _given_back(spec, clean, [POINTS[kind](layer) for layer in some], pos)

    found = sweep(
        model,
        [ids] * samples,
        specs,
        judge,
        position=position,
        checkpoint=checkpoint,
        progress=progress,
    )
    name = None if metric is not None else pieces_of(model, [answer], output=True)[0]
    grid = _grid(model, ids, found, kinds, name)
    grid = replace(grid, options={**grid.options, "subject": repr(subject)})
    return CausalTrace(grid, tuple(spoilt), wide, samples, seed, span)


def _grid(
    model: MIModel, ids: list[int], found: SweepResult, kinds: Sequence[str], answer: str | None
) -> Grid:
    """The scores by kind, layer and position; the first cell is the spoilt run itself."""
    rest = replace(found, names=found.names[1:], per_prompt=found.per_prompt[:, 1:])
    axes: dict[str, tuple[Coordinate, ...]] = {
        "kind": tuple(kinds),
        "layer": tuple(range(model.num_layers)),
        "pos": tuple(range(len(ids))),
    }
    grid = rest.grid(
        "the clean run given back where the subject was spoilt",
        axes,
        {"pos": pieces_of(model, ids)},
        {"prompt": text_of(model, ids)},
    )
    return replace(
        grid,
        metric=grid.metric if answer is None else f"probability of {answer!r}",
        baseline=float(found.scores[0]),
        reference=found.baseline,
    )


def _check(kinds: Sequence[str], samples: int, window: int) -> None:
    wrong = [kind for kind in kinds if kind not in POINTS]
    if wrong or not kinds or samples < 1 or window < 1:
        hint = did_you_mean(wrong[0], POINTS) if wrong else ""
        raise InterventionError(
            f"kinds={tuple(kinds)!r}, samples={samples}, window={window}: kinds are "
            f"{', '.join(POINTS)}; samples and window are 1 or more{hint}"
        )


def embedding_spread(model: MIModel) -> float:
    """The standard deviation of the entries of the embeddings, as the first layer gets them.

    Of a vocabulary of more than 16,384 tokens, evenly spaced ones are measured.
    """
    step = -(-model.vocab_size // MANY)
    ids = torch.arange(0, model.vocab_size, step)[:, None]
    run = model.forward(ids, HookSpec().capture(HookPoint.Embed), stop=0)
    return float(run[HookPoint.Embed].float().std())


def _positions(model: MIModel, tokens: Tensor, subject: Place) -> list[int]:
    """The positions of the subject, in order."""
    length = tokens.shape[1]
    frame = frame_of(model, record(model, tokens))
    found = select(At(pos=subject), HookPoint.Embed, frame)
    if found is None:
        raise InterventionError(f"subject={subject!r} is not in the prompt")
    places = torch.arange(length)[None]
    return sorted(numbers(places[found.index[:2]].flatten()))


def _window(layer: int, span: int, layers: int) -> range:
    """`span` layers around one, as many as there are."""
    return range(max(0, layer - span // 2), min(layers, layer - span // 2 + span))


def _given_back(spec: HookSpec, clean: HookCache, hooks: Sequence[Any], pos: int) -> HookSpec:
    """The spec with the clean run's activations at one position put in."""
    for hook in hooks:
        spec.intervene(hook, Replace(clean[hook][:, pos], at=At(pos=pos)))
    return spec
