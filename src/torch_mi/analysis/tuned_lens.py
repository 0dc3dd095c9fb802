# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tuned lens: a logit lens that first carries each layer's stream to where the last one lies.

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens". A lens is
trained for one model. Published ones are folders with `config.json` and `params.pt` (read as
tensors only, never as code) or `params.safetensors`; translator `i`, with `i.weight` and `i.bias`,
is for the stream that enters layer `i`, and what it gives is added to that stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from torch_mi.errors import FileError, ModelError
from torch_mi.files.legacy import read_bin
from torch_mi.model import MIModel
from torch_mi.storage import read_json, read_tensors

PARAMS = ("params.safetensors", "params.pt")


@dataclass(frozen=True, eq=False)
class TunedLens:
    """A translator for the stream that enters each layer."""

    weights: Tensor
    """[layer d_model d_model], from the last axis to the one before."""
    biases: Tensor
    """[layer d_model]."""
    made_for: str
    """The model it was trained for, as its config names it."""

    @staticmethod
    def load(folder: str | Path) -> "TunedLens":
        """Read a lens in the published format from a folder."""
        place = Path(folder)
        found = [place / name for name in PARAMS if (place / name).is_file()]
        if not found:
            raise FileError(f"{place} holds no tuned lens: there is neither {' nor '.join(PARAMS)}")
        config, path = read_json(place / "config.json"), found[0]
        tensors = read_tensors(path) if path.suffix == ".safetensors" else read_bin(path)
        layers, width = config.get("num_hidden_layers"), config.get("d_model")
        if not isinstance(layers, int) or not isinstance(width, int):
            raise FileError(f"{place / 'config.json'} names no num_hidden_layers or no d_model")
        biased = config.get("bias", True) is True
        _check(path, tensors, {**_shapes(layers, width, biased=biased)})
        weights = [tensors[f"{i}.weight"].float() for i in range(layers)]
        nothing = torch.zeros(width)
        biases = [tensors[f"{i}.bias"].float() if biased else nothing for i in range(layers)]
        name = str(config.get("base_model_name_or_path", "an unnamed model"))
        return TunedLens(torch.stack(weights), torch.stack(biases), name)

    def fit(self, model: MIModel) -> None:
        """Raise `ModelError` unless this lens has the shape of a model."""
        layers, width = self.biases.shape
        if (layers, width) != (model.num_layers, model.hidden_size):
            raise ModelError(
                f"this lens was made for {self.made_for}, with {layers} layers of width {width}; "
                f"the model has {model.num_layers} of width {model.hidden_size}"
            )

    def translate(self, depth: Tensor, first: int) -> Tensor:
        """Streams [layer ... d_model] that leave layer `first` and those after it, carried on.

        Layer -1 is the embedding; what leaves the last layer stays as it is.
        """
        out: list[Tensor] = []
        for i, x in enumerate(depth):
            into = first + i + 1
            if into < len(self.weights):
                x = x + x @ self.weights[into].to(x).T + self.biases[into].to(x)  # noqa: PLW2901
            out.append(x)
        return torch.stack(out)


def _shapes(layers: int, width: int, *, biased: bool) -> dict[str, tuple[int, ...]]:
    """The tensors that a lens is made of."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        shapes[f"{i}.weight"] = (width, width)
        if biased:
            shapes[f"{i}.bias"] = (width,)
    return shapes


def _check(path: Path, tensors: Mapping[str, Tensor], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise `FileError` unless a file holds just these tensors."""
    if odd := sorted(tensors.keys() ^ wanted.keys()):
        raise FileError(f"{path} is no tuned lens of its config.json: {odd[0]!r} is amiss")
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            found = list(tensors[name].shape)
            raise FileError(f"{path}: {name} has shape {found}, its config.json says {list(shape)}")
