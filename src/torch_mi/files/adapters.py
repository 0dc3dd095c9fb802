# SPDX-License-Identifier: MIT OR Apache-2.0
"""LoRA adapters as PEFT saves them, merged into the weights of their base model.

Every tensor that the adapter changes is computed in float32, the way PEFT's own merging does it.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from torch_mi.errors import ConfigError, FileError, ModelError, did_you_mean
from torch_mi.families.rules import Reader
from torch_mi.files.legacy import read_bin
from torch_mi.files.weights import Derived, Piece, Weights
from torch_mi.storage import read_json, read_tensors

SETTINGS = "adapter_config.json"
SINGLE = "adapter_model.safetensors"
BIN = "adapter_model.bin"
FILES = (SETTINGS, SINGLE, BIN)

PREFIX = "base_model.model."
"""What PEFT puts before the name of every tensor."""

LEAF = re.compile(
    r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(?:\.weight)?"
)
LINEAR, EMBEDDING = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")
BIAS, MAGNITUDE = "lora_B.bias", "lora_magnitude_vector"
HEAD = re.compile(r"(.+\.)?(lm_head|embed_out|output)\.weight")
TOKENS = re.compile(r"(.+\.)?(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight")
"""What unembeddings and embeddings are called."""

UNMODELLED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
"""Settings that change what an adapter computes in ways that are not read here."""

KEEPING = {"gaussian", "orthogonal", "eva", "loftq"}
"""Ways to begin that leave the base model's weights as they are."""


@dataclass(frozen=True)
class Change:
    """What an adapter does to one module."""

    module: str
    tensors: Mapping[str, Tensor]
    scale: float
    fan_in_fan_out: bool
    """Whether base weights are stored [in out], as a Conv1D's are."""

    @property
    def leaves(self) -> tuple[str, str]:
        return EMBEDDING if EMBEDDING[0] in self.tensors else LINEAR

    @property
    def made(self) -> tuple[int, int]:
        """The shape [out in] of what is added."""
        a, b = (self.tensors[leaf] for leaf in self.leaves)
        return b.shape[0], a.shape[-1]

    def turned(self, shape: tuple[int, ...]) -> bool:
        """Whether the base weight of this shape is the other way round."""
        return self.leaves is EMBEDDING or (self.fan_in_fan_out and shape == self.made[::-1])

    def weight(self, stored: list[Tensor]) -> Tensor:
        """The merged weight."""
        base = stored[0].float()
        turned = self.turned(tuple(base.shape))
        a, b = (self.tensors[leaf].float() for leaf in self.leaves)
        product = b @ a
        whole = base + (product.T if turned else product) * self.scale
        magnitude = self.tensors.get(MAGNITUDE)
        if magnitude is None:
            return whole
        factor = magnitude.float() / whole.square().sum(0 if turned else 1).sqrt()
        return (factor if turned else factor.view(-1, 1)) * whole

    def bias(self, stored: list[Tensor]) -> Tensor:
        """The merged bias."""
        return stored[0].float() + self.tensors[BIAS].float() * self.scale


@dataclass(frozen=True)
class Adapter:
    """An adapter's changes, and the tensors that it replaces whole."""

    folder: Path
    changes: Sequence[Change]
    replaced: Mapping[str, Tensor]

    def merge(self, weights: Weights, *, tied: bool = False) -> Weights:
        """The weights with this adapter in them; `tied` if their unembedding is the embedding."""
        shapes = weights.shapes()
        pieces = dict[str, Piece]()
        for theirs, value in self.replaced.items():
            head = tied and HEAD.fullmatch(theirs)
            name = theirs if head else self._base(theirs, shapes)
            pieces[name] = Piece((), tuple(value.shape), partial(_given, value))
            if tied and theirs in self.embeddings and not self.heads:
                pieces["lm_head.weight"] = Piece((name,), shapes[name], _first)
        for change in self.changes:
            if change.leaves[0] in change.tensors:
                name = self._base(f"{change.module}.weight", shapes)
                self._check(change, name, shapes[name])
                pieces[name] = _after(pieces.get(name), name, shapes[name], change.weight)
            if BIAS in change.tensors:
                name = self._base(f"{change.module}.bias", shapes)
                pieces[name] = _after(pieces.get(name), name, shapes[name], change.bias)
        return Derived(weights, pieces)

    @property
    def heads(self) -> list[str]:
        """Unembeddings of its own."""
        return [name for name in self.replaced if HEAD.fullmatch(name)]

    @property
    def embeddings(self) -> list[str]:
        """Embeddings of its own; one that it changes besides stays tied."""
        changed = {f"{change.module}.weight" for change in self.changes}
        return [n for n in self.replaced if TOKENS.fullmatch(n) and n not in changed]

    def _base(self, theirs: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """The base model's name for a tensor; one of the two may lack the model's prefix."""
        if theirs in shapes:
            return theirs
        near = [n for n in shapes if n.endswith(f".{theirs}") or theirs.endswith(f".{n}")]
        if len(near) == 1:
            return near[0]
        tied = "; its unembedding is the embedding" if HEAD.fullmatch(theirs) else ""
        raise ModelError(
            f"the adapter in {self.folder} changes {theirs}, which the base model does not have"
            f"{tied or did_you_mean(theirs, shapes)}"
        )

    def _check(self, change: Change, name: str, shape: tuple[int, ...]) -> None:
        """Whether a change fits the tensor that it is made to."""
        missing = [leaf for leaf in change.leaves if leaf not in change.tensors]
        if missing:
            raise ModelError(f"the adapter in {self.folder} lacks {change.module}.{missing[0]}")
        a, b = (tuple(change.tensors[leaf].shape) for leaf in change.leaves)
        turned = change.turned(shape)
        rows = change.tensors.get(MAGNITUDE)
        fitting = len(a) == len(b) == len(shape) == 2 and a[0] == b[1]  # noqa: PLR2004 - matrices
        if not fitting or shape != (change.made[::-1] if turned else change.made):
            raise ModelError(
                f"the adapter in {self.folder} is for another model: {change.module} has "
                f"{list(b)} times {list(a)}, which is no change to {name} {list(shape)}"
            )
        if rows is not None and (tuple(rows.shape) != b[:1] or change.leaves is EMBEDDING):
            raise ModelError(
                f"the adapter in {self.folder} has a magnitude {list(rows.shape)} for "
                f"{change.module}, which is not one for each of {b[0]} outputs of a linear layer"
            )


def read_adapter(folder: str | Path) -> Adapter:
    """The LoRA adapter in a folder."""
    folder = Path(folder).expanduser()
    if not (folder / SETTINGS).is_file():
        raise FileError(f"{folder} holds no adapter: it has no {SETTINGS}")
    raw = read_json(folder / SETTINGS)
    c = Reader(raw, SETTINGS)
    _check_kind(raw, c)
    tensors, replaced = dict[str, dict[str, Tensor]](), dict[str, Tensor]()
    for whole, value in sorted(_tensors(folder).items()):
        name = whole.removeprefix(PREFIX)
        found = LEAF.fullmatch(name)
        if found is not None:
            tensors.setdefault(found[1], {})[found[2]] = value
        elif name.endswith((".weight", ".bias")):
            replaced[name.replace(".base_layer.", ".")] = value
        else:
            raise ModelError(f"the adapter in {folder} has {whole}, which is no part of a LoRA")
    turned = c.get(bool, "fan_in_fan_out") is True
    changes = [Change(m, found, _scale(m, found, c), turned) for m, found in tensors.items()]
    return Adapter(folder, changes, replaced)


def _check_kind(raw: Mapping[str, object], c: Reader) -> None:
    """Whether this is an adapter that can be merged."""
    kind = c.get(str, "peft_type") or "unnamed"
    if kind.upper() != "LORA":
        raise ConfigError(
            f"{SETTINGS}: an adapter of type {kind} is not read here, LORA is; where PEFT can "
            "merge it (merge_and_unload), save the merged model and load that"
        )
    used = [key for key in UNMODELLED if raw.get(key)]
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start not in KEEPING:
        used.append(f"init_lora_weights = {start!r}")
    if used:
        raise ConfigError(
            f"{SETTINGS}: a LoRA with {used[0]} is not read here; merge it with PEFT "
            "(merge_and_unload), save the merged model and load that"
        )


def _tensors(folder: Path) -> Mapping[str, Tensor]:
    """The adapter's own tensors."""
    if (folder / SINGLE).is_file():
        return read_tensors(folder / SINGLE)
    if (folder / BIN).is_file():
        return read_bin(folder / BIN)
    raise FileError(f"{folder} has {SETTINGS} but neither {SINGLE} nor {BIN}")


def _scale(module: str, tensors: Mapping[str, Tensor], c: Reader) -> float:
    """What a module's change is multiplied by."""
    first = tensors.get(LINEAR[0], tensors.get(EMBEDDING[0]))
    if first is None:
        raise ModelError(f"the adapter has {module}.{next(iter(tensors))} but no {LINEAR[0]}")
    alpha = c.need(float, "lora_alpha")
    patterns = c.objects("alpha_pattern").get("alpha_pattern", {})
    fitting = next((pattern for pattern in patterns if _fits(pattern, module)), None)
    if fitting is not None:
        alpha = Reader(patterns, "alpha_pattern").need(float, fitting)
    rank = first.shape[0]
    return alpha / (math.sqrt(rank) if c.get(bool, "use_rslora") else rank)


def _fits(pattern: str, module: str) -> bool:
    """Whether a key of `alpha_pattern` is for a module."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as cause:
        raise ConfigError(f"{SETTINGS}: {pattern!r} in alpha_pattern is no pattern") from cause


def _given(value: Tensor, stored: list[Tensor]) -> Tensor:  # noqa: ARG001 - as all makers
    return value.float()


def _first(stored: list[Tensor]) -> Tensor:
    return stored[0].float()


def _after(
    earlier: Piece | None,
    name: str,
    shape: tuple[int, ...],
    change: Callable[[list[Tensor]], Tensor],
) -> Piece:
    """A change to the base tensor, or to what the adapter puts in its place."""
    if earlier is None:
        return Piece((name,), shape, change)
    return Piece(earlier.stored, shape, lambda stored: change([earlier.make(stored)]))
