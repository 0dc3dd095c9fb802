# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a model's files amount to, whatever format they are in: a config, and weights to open."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch_mi.errors import FileError
from torch_mi.files.adapters import Adapter
from torch_mi.files.checkpoint import Checkpoint, has_weights, read_config
from torch_mi.files.gguf import GgufFile
from torch_mi.files.hub import Source
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
    path = source.file or gguf_in(source.folder)
    if path is not None:
        file = GgufFile(path)
        return Files(file.config(), lambda: file, file.metadata, altered=True)
    raw = read_config(source.folder)
    check_method(raw)
    config = {key: value for key, value in raw.items() if key != KEY}
    return Files(
        config,
        lambda: dequantised(Checkpoint(source.folder), raw),
        altered=raw.get(KEY) is not None,
    )


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
