# SPDX-License-Identifier: MIT OR Apache-2.0
"""Activation patching with nnsight, written as its documentation of activation patching does it.

The clean run is saved once; each cell is an invoke that writes a saved value over its place, and
several invokes share a trace, which runs them as one batch.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import words

TOGETHER = 8
"""Invokes in one trace; more may be somewhat faster for each cell."""


def wrapped(hf: Any) -> Any:
    """A copy of a `transformers` model in nnsight's wrapper; it insists on a tokenizer."""
    from nnsight.modeling.transformers import (  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - a peer, not everywhere
        TransformersModel,
    )

    # a copy: what nnsight hangs on modules must not slow the loop by hand
    return TransformersModel(copy.deepcopy(hf), tokenizer=words())


def patched(
    model: Any,
    prompts: tuple[Tensor, Tensor],
    cells: Sequence[tuple[int, int]],
    width: int | None,
    read: tuple[int, int],
) -> Tensor:
    """The difference of two logits for each cell: a layer with a head of that width or a position.

    `prompts` are the clean and the corrupted one, token ids [1 pos].
    """
    import nnsight  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - a peer, not everywhere

    clean, corrupted = prompts
    blocks = model.transformer.h
    found: list[Tensor] = []
    with torch.no_grad():
        source = _saved(model, clean, heads=width is not None)
        for first in range(0, len(cells), TOGETHER):
            with model.trace() as tracer:
                scores = nnsight.save([])
                for layer, place in cells[first : first + TOGETHER]:
                    with tracer.invoke(corrupted):
                        if width is None:
                            blocks[layer].input[:, place] = source[layer][:, place]
                        else:
                            part = slice(place * width, (place + 1) * width)
                            mixed = blocks[layer].attn.c_proj.input
                            mixed[:, :, part] = source[layer][:, :, part]
                        end = model.output.logits[0, -1]
                        scores.append((end[read[0]] - end[read[1]]).detach())
            found += scores
    return torch.stack(found)


def _saved(model: Any, tokens: Tensor, *, heads: bool) -> list[Tensor]:
    """What enters each layer, or its output projection, of one run."""
    import nnsight  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - a peer, not everywhere

    with model.trace(tokens):
        places = [block.attn.c_proj if heads else block for block in model.transformer.h]
        saved = nnsight.save([place.input.detach().clone() for place in places])
    return saved  # noqa: RET504 - a trace's body runs in a frame of its own
