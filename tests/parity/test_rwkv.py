# SPDX-License-Identifier: MIT OR Apache-2.0
"""RWKV-4 to 7 against the published equations, and other implementations of them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import torch_mi as mi
from tests.parity.rwkv import Plain, Ran, Sizes, checkpoint
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.point import HookPoint as P

SMALL = [
    Sizes("4", 10, 14, 1),
    Sizes("5.0", 10, 3, 5),
    Sizes("5.1", 8, 3, 4, logarithmic=True),
    Sizes("5.2", 10, 2, 7),
    Sizes("5.2", 9, 4, 3, layers=3, logarithmic=True),
    Sizes("6", 10, 3, 4),
    Sizes("6", 15, 2, 8, layers=3, inner=18, ranks=(2, 6)),
    Sizes("7", 12, 3, 4),
    Sizes("7", 15, 5, 3, layers=3, inner=18, ranks=(6, 2, 3, 4)),
]
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 12, 0]


def near(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    size = max(1.0, float(wanted.abs().max()))
    found = found.double()
    torch.testing.assert_close(found, wanted.double(), atol=tolerance * size, rtol=0)


def written(tensors: dict[str, Tensor], path: Path) -> Path:
    """Weights in a file alone, of either format."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    return path


def agrees(model: mi.MIModel, wanted: Ran, tokens: list[int], tolerance: float = 1e-5) -> None:
    """Logits, what enters and leaves layers, decays and last states."""
    spec = mi.HookSpec().capture(P.ResidPre, P.ResidPost, P.RwkvW)
    spec = spec.capture(P.RwkvState, at=At(pos=-1))
    for kind in ("auto", "explicit"):
        seen = model.forward(torch.tensor([tokens]), spec, attention=kind)
        near(seen.output[0], wanted.logits, tolerance)
        for layer, state in enumerate(wanted.states):
            near(seen[P.ResidPre(layer)][0], wanted.resid[layer], tolerance)
            near(seen[P.ResidPost(layer)][0], wanted.resid[layer + 1], tolerance)
            near(seen[P.RwkvW(layer)][0].flatten(1), wanted.decay[layer].flatten(1), tolerance)
            found = seen[P.RwkvState(layer)][0].double()
            if state.shape != found.shape:  # sums of RWKV-4, which we keep scaled
                found = (found[:, 0, :2] * found[:, 0, 2:].exp()).mT
            near(found, state, tolerance)


@pytest.mark.parametrize("sizes", SMALL, ids=str)
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_the_published_equations(sizes: Sizes, ending: str, tmp_path: Path) -> None:
    tensors = checkpoint(sizes, seed=len(ending))
    model = mi.MIModel.from_pretrained(written(tensors, tmp_path / f"model.{ending}"))
    eps = 64e-5 if sizes.version != "7" else 1e-5 * sizes.size
    agrees(model, Plain(tensors, sizes, eps).run(TOKENS), TOKENS)


def test_long_texts_of_the_usual_size(tmp_path: Path) -> None:
    """Chunks of many tokens, heads of 64, and states that outlast chunks."""
    dice = torch.Generator().manual_seed(0)
    tokens = torch.randint(13, (150,), generator=dice).tolist()
    for version in ("6", "7"):
        sizes = Sizes(version, 128, 2, 64, inner=64)
        tensors = checkpoint(sizes)
        model = mi.MIModel.from_pretrained(written(tensors, tmp_path / f"{version}.pth"))
        agrees(model, Plain(tensors, sizes).run(tokens), tokens, 3e-5)
