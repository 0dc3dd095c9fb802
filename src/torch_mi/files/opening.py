# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a model's files amount to, whatever format they are in: a config, and weights to open."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch_mi.errors import FileError
from torch_mi.families.rwkv import unnamed
from torch_mi.files.adapters import Adapter
from torch_mi.files.checkpoint import Checkpoint, has_weights, read_config
from torch_mi.files.gguf import GgufFile
from torch_mi.files.hub import GGUF, Source
from torch_mi.files.quantised import KEY, check_method, dequantised
from torch_mi.files.weights import Weights


@dataclass(frozen=True)
class Files:
    """A model on this machine, its weights not yet opened."""

    config: Mapping[str, object]
    """As a `config.json` of the weights as they come out of `open`."""
    open: Callable[[], Weights]
    metadata: Mapping[str, object] | None = None
    """What a GGUF file says of itself, its tokenizer included."""
    altered: bool = False
    """Whether transformers would find other weights in the folder than come out of `open`."""

    def adapted(self, adapter: Adapter) -> "Files":
        """The same model with an adapter merged into it."""
        tied = self.config.get("tie_word_embeddings") is True
        config = dict(self.config)
        if tied and (adapter.heads or adapter.embeddings):
            config["tie_word_embeddings"] = False
        return Files(
            config, lambda: adapter.merge(self.open(), tied=tied), self.metadata, altered=True
        )


def open_files(source: Source) -> Files:
    """The model that a source holds."""
    path = gguf_of(source)
    if path is not None:
        file = GgufFile(path)
        return Files(file.config(), lambda: file, file.metadata, altered=True)
    raw = _config(source)
    check_method(raw)
    config = {key: value for key, value in raw.items() if key != KEY}
    return Files(
        config,
        lambda: dequantised(Checkpoint(source.folder, source.file), raw),
        altered=raw.get(KEY) is not None or source.file is not None,
    )


def gguf_of(source: Source) -> Path | None:
    """The GGUF file that a source is, if it is one."""
    if source.file is not None:
        return source.file if source.file.suffix == GGUF else None
    return gguf_in(source.folder)


def _config(source: Source) -> dict[str, object]:
    """The config of a folder; of RWKV in its authors' names, what its tensors say.

    Such a checkpoint may come without a `config.json`, or with one that adds what no tensor says.
    """
    there = (source.folder / "config.json").is_file()
    raw = read_config(source.folder) if there else {}
    bare = there and "model_type" not in raw
    if not bare and (there or not has_weights(source.folder, source.file)):
        return raw or read_config(source.folder)
    with Checkpoint(source.folder, source.file) as weights:
        found = unnamed(weights.shapes())
    return read_config(source.folder) if found is None else {**raw, **found}


def gguf_in(folder: Path) -> Path | None:
    """The one GGUF file of a folder without safetensors, if that is what it has."""
    found = sorted(folder.glob("*.gguf"))
    first = [path for path in found if "-of-" not in path.name or "-00001-of-" in path.name]
    if not found or has_weights(folder):
        return None
    if len(first) != 1:
        names = ", ".join(path.name for path in first or found)
        raise FileError(f"{folder} holds {len(found)} GGUF files; give one of them: {names}")
    return first[0]
