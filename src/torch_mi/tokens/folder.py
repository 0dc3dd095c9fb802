# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which tokenizer a model folder holds. No code of a folder is ever run."""

from collections.abc import Mapping
from pathlib import Path

from torch_mi.errors import TokenizerError
from torch_mi.families.world import NOTE, VOCABULARIES, vocabulary_advice
from torch_mi.tokens.fast import FastVocabulary
from torch_mi.tokens.settings import Settings, optional_json, read_settings
from torch_mi.tokens.single_bytes import byte_vocabulary
from torch_mi.tokens.vocabulary import Vocabulary
from torch_mi.tokens.world import read_world

CONVERT = "transformers makes one: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"


def open_folder(folder: Path, config: Mapping[str, object] | None) -> tuple[Vocabulary, Settings]:
    """The vocabulary in a folder, and what is said of it; `config` is the model's, if known."""
    if not folder.is_dir():
        raise TokenizerError(f"there is no folder {folder}")
    known = optional_json(folder / "config.json") if config is None else config
    worlds = sorted(folder.glob(VOCABULARIES))
    if len(worlds) > 1:
        names = ", ".join(path.name for path in worlds)
        raise TokenizerError(f"{folder} has several vocabularies: {names}; keep the model's own")
    if worlds:  # before tokenizer.json, which would be a conversion of it
        return read_world(worlds[0], read_settings(folder, known))
    if (folder / "tokenizer.json").is_file():
        settings = read_settings(folder, known)
        return _fast(folder / "tokenizer.json", settings, vocabulary_advice(known)), settings
    kind = optional_json(folder / NOTE).get("type")
    if kind == "bytes":
        return byte_vocabulary(), read_settings(folder, known)
    if kind is not None:
        raise TokenizerError(f"{folder / NOTE} has the type {kind!r}; 'bytes' is the only one")
    raise TokenizerError(f"{_missing(folder)}{vocabulary_advice(known)}")


def _fast(path: Path, settings: Settings, advice: str) -> FastVocabulary:
    from tokenizers import Tokenizer  # noqa: PLC0415 - tokenizers loads late

    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as cause:  # tokenizers raises nothing narrower
        raise TokenizerError(f"failed to read {path}: {cause}{advice}") from cause
    return FastVocabulary(backend, settings)


def _missing(folder: Path) -> str:
    """Why there is no tokenizer in a folder, and what to do."""
    names = sorted(path.name for path in folder.iterdir())
    for older in ("tokenizer.model", "vocab.json"):
        if older in names:
            return f"{folder} has {older} but no tokenizer.json, which is needed; {CONVERT}"
    return f"{folder} has no tokenizer.json; it holds {', '.join(names[:12]) or 'nothing'}"
