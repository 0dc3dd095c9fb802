# SPDX-License-Identifier: MIT OR Apache-2.0
"""The one loop behind grids of runs: for each cell, this spec, this score.

An edit in layer l changes nothing before layer l. So one plain run is recorded, and cells start
from its residual stream at the first layer they edit, side by side as the rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_mi.cache import Residual
from torch_mi.errors import InterventionError
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.sweeps.metrics import Metric

ROWS = 64
"""Cells that run side by side."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A score for each cell, the plain run's, and what it takes to make that run again."""

    scores: Tensor
    baseline: float
    manifest: Manifest


def score_cells(
    model: MIModel, tokens: Tensor, specs: Sequence[HookSpec], metric: Metric
) -> Scored:
    """The score of each spec's run on one prompt [1 pos], and that of the plain run.

    Scores are read at the last position.
    """
    plain = model.forward(tokens, HookSpec().capture(HookPoint.ResidPre))
    baseline = float(metric.score(model, plain.output[0, -1]))
    starts = [first_layer(spec) for spec in specs]
    scores = torch.empty(len(specs))
    for start in sorted(set(starts), key=lambda s: -1 if s is None else s):
        cells = [i for i, s in enumerate(starts) if s == start]
        for k in range(0, len(cells), ROWS):
            batch = cells[k : k + ROWS]
            together = side_by_side([specs[i] for i in batch])
            if start is None:
                run = model.forward(tokens.expand(len(batch), -1), together)
            else:
                x = plain[HookPoint.ResidPre(start)].expand(len(batch), -1, -1)
                run = model.forward(Residual(start, x), together)
            scores[batch] = metric.score(model, run.output[:, -1]).float().cpu()
    return Scored(scores, baseline, plain.manifest)


def first_layer(spec: HookSpec) -> int | None:
    """The first layer whose input a run needs; `None` if it must start from the tokens."""
    layers: list[int] = []
    for place, _ in spec.edits:
        if not isinstance(place, Hook) or place.layer is None:
            return None
        layers.append(place.layer)
    return min(layers, default=None)


def side_by_side(specs: Sequence[HookSpec]) -> HookSpec:
    """One spec for a batch in which row i is run with specs[i]."""
    together = HookSpec()
    for row, spec in enumerate(specs):
        if spec.num_captures() or spec.state_knockout or spec.state_steering:
            raise InterventionError(f"a cell of a grid may edit and nothing else, not {spec!r}")
        for place, edit in spec.edits:
            at = edit.at or At()
            if at.batch is not None:
                raise InterventionError(
                    f"{edit!r}: a cell of a grid is one prompt; leave batch out"
                )
            together.intervene(place, replace(edit, at=replace(at, batch=[row])))
    return together
