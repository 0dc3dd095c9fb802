# SPDX-License-Identifier: MIT OR Apache-2.0
"""What needs no logits makes none: runs end before the unembedding, which is counted here."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import torch_mi as mi
from torch_mi.analysis.activation_steering import convergence, directions
from torch_mi.analysis.attention import attention
from torch_mi.analysis.attribution_patching import attribution_patches
from torch_mi.analysis.decomposition import accumulated_resid, decompose_resid
from torch_mi.analysis.geometry import activations, pca_activations
from torch_mi.analysis.patching import patch
from torch_mi.testing import tiny

P = mi.HookPoint
TEXT, OTHER = "abcdefg", "abXdefg"
METRIC = mi.logit_diff("q", "z")


def counted(model: mi.MIModel) -> list[int]:
    """How many positions each call of the model's unembedding turns into logits."""
    rows: list[int] = []
    unembed = model.backend.unembed

    def watched(x: Tensor, tap: object) -> Tensor:
        rows.append(x.numel() // model.hidden_size)
        return unembed(x, tap)  # pyright: ignore[reportArgumentType]

    model.backend.unembed = watched
    return rows


WITHOUT: dict[str, Callable[[mi.MIModel], object]] = {
    "a run that stops": lambda m: m.forward(
        TEXT, mi.HookSpec().capture(P.ResidPost), stop=m.num_layers
    ),
    "accumulated_resid": lambda m: accumulated_resid(m, TEXT, mid=True),
    "decompose_resid": lambda m: decompose_resid(m, TEXT, split="heads"),
    "attention": lambda m: attention(m, TEXT),
    "find_heads": lambda m: mi.find_heads(m, kind="induction", length=4, repeats=2),
    "pca_activations": lambda m: pca_activations(m, [TEXT, OTHER, "hij"], at=P.ResidPost(1), k=1),
    "activations": lambda m: activations(m, [TEXT, OTHER], at=["blocks.1.attn.hook_z"]),
    "directions": lambda m: directions(m, TEXT, OTHER),
    "convergence": lambda m: convergence(m, TEXT, directions(m, TEXT, OTHER)),
}


@pytest.mark.parametrize("what", WITHOUT)
def test_no_logits_are_made(what: str) -> None:
    model = tiny("llama")
    rows = counted(model)
    WITHOUT[what](model)
    assert not rows
    model.forward(TEXT)
    assert rows == [8], "the count counts"


def test_patching_makes_those_that_are_read() -> None:
    """One row for each prompt that is scored, and one for each cell that is run."""
    model = tiny("llama")
    rows = counted(model)
    attribution_patches(model, TEXT, OTHER, metric=METRIC)
    assert sum(rows) == 2
    rows.clear()
    grid = patch(model, TEXT, OTHER, at="attn_out", metric=METRIC, layers=[0])
    changed = int((grid.values != torch.tensor(grid.baseline)).sum())
    assert 2 + changed <= sum(rows) <= 2 + grid.values.numel()
