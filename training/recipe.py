# SPDX-License-Identifier: MIT OR Apache-2.0
"""The demo models' recipes: how each begins, how its rates go, and how it is saved."""

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from torch_mi.families.report import understand
from torch_mi.loading import believable_shapes
from torch_mi.model import MIModel
from torch_mi.storage import read_json, read_tensors, write_json, write_tensors
from training import llama, rwkv


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the training leads to."""

    model: str = "llama"
    """The architecture, one of `SHAPES`."""
    seed: int = 0
    steps: int = 2800
    documents: int = 128
    """Per step."""
    learning_rate: float = 3e-3
    """Of tables and vectors, by AdamW."""
    matrix_rate: float = 0.02
    """Of matrices, by Muon."""
    float32: bool = False
    """Whether Muon makes its products in float32, not in bfloat16."""
    weight_decay: float = 0.02
    vector_decay: float = 0.02
    """The weight decay of tables and vectors."""
    answers_from: int = 800
    """The step from which answers count more, once sentences are known."""
    early: str = "early"
    """The mixture of documents before the late one, one of `MIXTURES`."""
    late_from: int = 1400
    """The step from which facts give way to what is slower to learn."""
    horizon: int = 4600
    """The step at which the cosine would reach nothing."""
    cool_down: int = 600
    """The last steps, over which the rates go to nothing in a line."""
    warm_up: int = 60

    def pace(self, step: int) -> float:
        """The part of the learning rates in force: up in a line, down a cosine, to nothing."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        done = (step - self.warm_up) / (self.horizon - self.warm_up)
        last = (self.steps - step) / self.cool_down
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done))) * min(1.0, last)


SHAPES = {
    "llama": (llama.CONFIG, llama.first_weights),
    "rwkv": (rwkv.CONFIG, rwkv.first_weights),
}
"""What each model's `config.json` says, and the weights that it begins with."""
RECIPES = {
    "llama": Recipe(),
    "rwkv": Recipe(
        model="rwkv",
        steps=600,
        documents=96,
        float32=True,
        vector_decay=0.0,
        answers_from=100,
        early="facts",
        late_from=300,
        horizon=2000,
        cool_down=150,
        warm_up=40,
    ),
}
"""How each packaged model was trained."""


def begin(folder: Path, vocab_size: int, plan: Recipe) -> MIModel:
    """An untrained model, saved in `folder` beside its tokenizer and loaded from there."""
    shape, first_weights = SHAPES[plan.model]
    config = {**shape, "vocab_size": vocab_size}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
    write_tensors(folder / "model.safetensors", first_weights(config, plan.seed))
    return MIModel.from_pretrained(folder, device="cpu")


def hugging_face_weights(model: MIModel, folder: Path) -> dict[str, Tensor]:
    """The model's parameters under the names, and in the shapes, that they have in `folder`."""
    held = read_tensors(folder / "model.safetensors")
    theirs = {name: tuple(tensor.shape) for name, tensor in held.items()}
    ours = dict(model.backend.named_parameters())
    shapes = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    found = understand(read_json(folder / "config.json"), lambda: theirs, believable_shapes)
    placements = found.place(shapes, list(theirs)).placements
    return {name: ours[p.ours].reshape(theirs[name]) for p in placements for name in p.theirs}
