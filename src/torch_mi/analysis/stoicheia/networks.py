# SPDX-License-Identifier: MIT OR Apache-2.0
"""The two kinds of network in AlgZoo, as values: a task and a handful of tensors.

Sources: the weights of github.com/alignment-research-center/alg-zoo (`nn.RNN` without biases,
`nn.MultiheadAttention` without biases).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from torch_mi.analysis.stoicheia.tasks import Task, task_named
from torch_mi.errors import ModelError
from torch_mi.storage import write_tensors

if TYPE_CHECKING:
    from torch_mi.model import MIModel

RNN_NAMES = ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "linear.weight")
DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class StoicheiaRnn:
    """h_t = relu(w_ih · x_t + w_hh · h_{t-1}) from h = 0; the output is w_oh · h after the last."""

    task: Task
    seq_len: int
    w_ih: Tensor
    """What each neuron [hidden] reads of the input."""
    w_hh: Tensor
    """What it reads [hidden hidden] of each neuron one step before."""
    w_oh: Tensor
    """What each output reads of each neuron [out hidden]."""

    def __post_init__(self) -> None:
        if self.task.discrete:
            raise ModelError(
                f"{self.task.name} is a task of transformers, not of recurrent networks"
            )
        hidden, out = len(self.w_ih), self.task.outputs(self.seq_len)
        _shaped(RNN_NAMES[1], self.w_hh, (hidden, hidden))
        _shaped(RNN_NAMES[2], self.w_oh, (out, hidden))
        _sound(self.tensors())

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], task: str | Task, seq_len: int | None = None
    ) -> Self:
        """The network in a state dict; `seq_len` is needed where the output does not tell it."""
        task = task_named(task)
        _named(tensors, RNN_NAMES)
        w_ih, w_hh, w_oh = (tensors[name] for name in RNN_NAMES)
        if w_ih.ndim != 2 or w_ih.shape[1] != 1 or w_oh.ndim != 2:  # noqa: PLR2004 - matrices
            shapes = f"{list(w_ih.shape)} and {list(w_oh.shape)}"
            raise ModelError(
                f"{RNN_NAMES[0]} is [hidden, 1], linear.weight [out, hidden]: {shapes}"
            )
        if task.scalar and seq_len is None:
            raise ModelError(f"a network for {task.name} does not tell its length; give seq_len")
        return cls(task, len(w_oh) if seq_len is None else seq_len, w_ih[:, 0], w_hh, w_oh)

    def tensors(self) -> dict[str, Tensor]:
        """The weights under the zoo's names."""
        return dict(zip(RNN_NAMES, (self.w_ih[:, None], self.w_hh, self.w_oh), strict=True))

    @property
    def hidden_size(self) -> int:
        return len(self.w_ih)

    @property
    def output_size(self) -> int:
        return len(self.w_oh)

    @property
    def num_parameters(self) -> int:
        return sum(value.numel() for value in self.tensors().values())

    def model(self) -> "MIModel":
        """A model of these weights to look inside; it answers with the logits at the last place."""
        from torch_mi.stoicheia import relu_model  # noqa: PLC0415 - values need no models

        weights = {"w_ih": self.w_ih[None], "w_hh": self.w_hh, "w_oh": self.w_oh}
        return relu_model(weights, self.seq_len, self.task.name)

    def to(self, dtype: torch.dtype) -> Self:
        """The same network in another dtype."""
        w_ih, w_hh, w_oh = (w.to(dtype) for w in (self.w_ih, self.w_hh, self.w_oh))
        return replace(self, w_ih=w_ih, w_hh=w_hh, w_oh=w_oh)

    def save(self, path: str | Path) -> Path:
        """Write the weights as safetensors, under the zoo's names."""
        return write_tensors(path, self.tensors())

    def __repr__(self) -> str:
        return _said(self.task, "recurrent network", self.hidden_size, self.seq_len, self)


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """One layer: queries, keys and values stacked; what becomes of the mixed values."""

    in_proj: Tensor
    """[3·hidden hidden]"""
    out_proj: Tensor
    """[hidden hidden]"""

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The matrices [hidden hidden] that make queries, keys and values of column vectors."""
        size = self.out_proj.shape[0]
        return self.in_proj[:size], self.in_proj[size : 2 * size], self.in_proj[2 * size :]


@dataclass(frozen=True, eq=False)
class StoicheiaTransformer:
    """Attention layers of one head that look everywhere; the last place has the answer."""

    task: Task
    embed: Tensor
    """What each number [n hidden] becomes."""
    pos_embed: Tensor
    """What each place [n hidden] adds."""
    layers: tuple[AttentionWeights, ...]
    unembed: Tensor
    """What each output reads [out hidden] of the last place."""

    def __post_init__(self) -> None:
        if not self.task.discrete:
            raise ModelError(f"{self.task.name} is a task of recurrent networks, not transformers")
        n, hidden = self.pos_embed.shape
        _shaped("embed.weight", self.embed, (n, hidden))
        _shaped("unembed.weight", self.unembed, (self.task.outputs(n), hidden))
        for i, layer in enumerate(self.layers):
            _shaped(f"attns.{i}.in_proj_weight", layer.in_proj, (3 * hidden, hidden))
            _shaped(f"attns.{i}.out_proj.weight", layer.out_proj, (hidden, hidden))
        _sound(self.tensors())

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], task: str | Task = "longest_cycle"
    ) -> Self:
        """The network in a state dict; its depth is told by the names."""
        count = sum(name.endswith(".in_proj_weight") for name in tensors)
        layered = [
            (f"attns.{i}.in_proj_weight", f"attns.{i}.out_proj.weight") for i in range(count)
        ]
        outer = ("embed.weight", "pos_embed.weight", "unembed.weight")
        _named(tensors, (*outer, *(name for pair in layered for name in pair)))
        embed, places, unembed = (tensors[name] for name in outer)
        if places.ndim != 2:  # noqa: PLR2004 - a matrix
            raise ModelError(f"pos_embed.weight is [n, hidden], not {list(places.shape)}")
        layers = tuple(AttentionWeights(tensors[a], tensors[b]) for a, b in layered)
        return cls(task_named(task), embed, places, layers, unembed)

    def tensors(self) -> dict[str, Tensor]:
        """The weights under the zoo's names."""
        found = {"embed.weight": self.embed, "pos_embed.weight": self.pos_embed}
        for i, layer in enumerate(self.layers):
            found[f"attns.{i}.in_proj_weight"] = layer.in_proj
            found[f"attns.{i}.out_proj.weight"] = layer.out_proj
        return found | {"unembed.weight": self.unembed}

    @property
    def seq_len(self) -> int:
        return len(self.pos_embed)

    @property
    def hidden_size(self) -> int:
        return self.pos_embed.shape[1]

    @property
    def output_size(self) -> int:
        return len(self.unembed)

    @property
    def num_parameters(self) -> int:
        return sum(value.numel() for value in self.tensors().values())

    def model(self) -> "MIModel":
        """A model of these weights to look inside; it answers with the logits at the last place."""
        from torch_mi.stoicheia import attention_model  # noqa: PLC0415 - values need no models

        weights = {
            "tokens.weight": self.embed,
            "positions.weight": self.pos_embed,
            "head.weight": self.unembed,
        }
        for i, layer in enumerate(self.layers):
            made = zip("qkvo", (*layer.parts(), layer.out_proj), strict=True)
            weights |= {f"blocks.{i}.attn.{part}.weight": value for part, value in made}
        return attention_model(weights, len(self.layers), self.task.name)

    def to(self, dtype: torch.dtype) -> Self:
        """The same network in another dtype."""
        moved = {name: value.to(dtype) for name, value in self.tensors().items()}
        return self.from_tensors(moved, self.task)

    def save(self, path: str | Path) -> Path:
        """Write the weights as safetensors, under the zoo's names."""
        return write_tensors(path, self.tensors())

    def __repr__(self) -> str:
        return _said(self.task, "transformer", self.hidden_size, self.seq_len, self)


Network = StoicheiaRnn | StoicheiaTransformer


def _said(task: Task, kind: str, hidden: int, n: int, network: Network) -> str:
    count = network.num_parameters
    return f"<{task.name}: {kind}, hidden size {hidden}, {n} inputs, {count:,} parameters>"


def _named(tensors: Mapping[str, Tensor], wanted: tuple[str, ...]) -> None:
    missing, extra = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing:
        raise ModelError(
            f"there is no tensor {missing[0]!r}; there are {', '.join(sorted(tensors))}"
        )
    if extra:
        raise ModelError(f"networks of the zoo have no {', '.join(extra)}; they have {wanted}")


def _shaped(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ModelError(f"{name} has shape {list(value.shape)}; the others make it {list(shape)}")


def _sound(tensors: Mapping[str, Tensor]) -> None:
    dtypes = {value.dtype for value in tensors.values()}
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        found = ", ".join(sorted(map(str, dtypes)))
        raise ModelError(f"the weights are {found}; they have to be all float32 or all float64")
    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise ModelError(f"{name} holds numbers that are not finite")
