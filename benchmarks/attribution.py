# SPDX-License-Identifier: MIT OR Apache-2.0
"""Attribution patching: all points at once, next to a plain run and to TransformerLens's tool."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.pairing import BenchmarkError, Effort, Pair, Row, race, rows
from torch_mi.analysis.attribution_patching import attribution_patch, attribution_patches
from torch_mi.model import MIModel
from torch_mi.sweeps.grid import Grid
from torch_mi.sweeps.metrics import logit_diff

OURS, PLAIN, LENS = "torch-mi, every point", "torch-mi, a plain run", "TransformerLens's tool"
RUNS = 2.5
"""How many plain runs of one prompt ours may take."""
TOLERANCE = 1e-4


def measure(
    ours: MIModel,
    lens: Any | None,
    prompts: tuple[Tensor, Tensor],
    read: tuple[int, int],
    effort: Effort,
) -> list[Row]:
    """All of them, checked against each other and timed."""
    works: dict[str, Callable[[], object]] = {
        OURS: partial(attribution_patches, ours, *prompts, metric=logit_diff(*read)),
        PLAIN: partial(ours.forward, prompts[1]),
    }
    if lens is not None:
        works[LENS] = partial(_lens, lens, prompts, read)
        check(ours, _lens(lens, prompts, read), prompts, read)
    setting = f"{prompts[1].shape[1]} tokens, {torch.get_num_threads()} threads"
    pairs = [Pair(OURS, PLAIN, RUNS), Pair(LENS, PLAIN), Pair(OURS, LENS)]
    return rows("attribution patching", setting, race(works, effort), pairs)


def check(
    ours: MIModel, theirs: dict[Any, float], prompts: tuple[Tensor, Tensor], read: tuple[int, int]
) -> None:
    """An error unless every node that TransformerLens scores has the same score here."""

    def grid(at: str, *by: Any) -> Grid:
        return attribution_patch(ours, *prompts, at=at, metric=logit_diff(*read), by=by)

    heads, mlps = grid("z", "layer", "pos", "head"), grid("mlp_out", "layer", "pos")
    worst = 0.0
    for node, score in theirs.items():
        if node.kind == "attn_head_out":
            mine = heads.values[node.layer, node.position, node.head] - heads.baseline
        elif node.kind == "mlp_out":
            mine = mlps.values[node.layer, node.position] - mlps.baseline
        else:  # the embedding is no place of ours
            continue
        worst = max(worst, abs(float(mine) - score))
    if not worst <= TOLERANCE:
        raise BenchmarkError(f"attribution: torch-mi and TransformerLens differ by {worst:.2g}")


def _lens(lens: Any, prompts: tuple[Tensor, Tensor], read: tuple[int, int]) -> dict[Any, float]:
    """TransformerLens's tool: heads' outputs and MLPs, by position."""
    from transformer_lens.tools.analysis.attribution_patching import (  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - a peer, not everywhere
        attribution_patch as theirs,
    )

    def score(logits: Tensor) -> Tensor:
        return logits[0, -1, read[0]] - logits[0, -1, read[1]]

    return theirs(lens, *prompts, score).node_scores
