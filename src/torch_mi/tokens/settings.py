# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a model folder says about its tokenizer, besides the vocabulary itself."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from torch_mi.errors import FileError, TokenizerError
from torch_mi.storage import read_json

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that a tokenizer's configuration names."""


@dataclass(frozen=True)
class Declared:
    """One added token as `tokenizer_config.json` declares it."""

    content: str
    special: bool
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class Settings:
    """Named special tokens, whether BOS is wanted, and how a chat is written."""

    named: Mapping[str, str] = field(default_factory=dict[str, str])
    added: Mapping[int, Declared] = field(default_factory=dict[int, Declared])
    add_bos: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    model_vocab: int = 0
    chat_template: str | None = None


def read_settings(folder: Path, model: Mapping[str, object]) -> Settings:
    """What a folder and its model's config say, each from the file that has the last word on it."""
    tokens = optional_json(folder / "tokenizer_config.json")
    generation = optional_json(folder / "generation_config.json")
    named = _named(optional_json(folder / "special_tokens_map.json")) | _named(tokens)
    eos = (*_ids(model.get("eos_token_id")), *_ids(generation.get("eos_token_id")))
    return Settings(
        named=named,
        added=_added(tokens.get("added_tokens_decoder")),
        add_bos=tokens.get("add_bos_token") is True,
        bos_id=next(iter(_ids(model.get("bos_token_id"))), None),
        eos_ids=tuple(dict.fromkeys(eos)),
        pad_id=next(iter(_ids(model.get("pad_token_id"))), None),
        model_vocab=next(iter(_ids(model.get("vocab_size"))), 0),
        chat_template=_template(folder, tokens.get("chat_template")),
    )


def settings_to_json(settings: Settings) -> dict[str, object]:
    """What `read_settings` reads from `tokenizer_config.json`.

    Added tokens and a BOS put first are part of the tokenizer by now.
    """
    said: dict[str, object] = {**settings.named, "add_bos_token": settings.add_bos}
    if settings.chat_template is not None:
        said["chat_template"] = settings.chat_template
    return said


def optional_json(path: Path) -> dict[str, object]:
    """The object in a JSON file, or nothing where there is no such file."""
    try:
        return read_json(path) if path.is_file() else {}
    except FileError as cause:
        raise TokenizerError(str(cause)) from cause


def _content(token: object) -> str | None:
    """The text of a token written as a string or as an object with `content`."""
    if isinstance(token, dict):
        token = cast("dict[str, object]", token).get("content")
    return token if isinstance(token, str) else None


def _named(table: Mapping[str, object]) -> dict[str, str]:
    contents = {name: _content(table.get(name)) for name in NAMED}
    return {name: content for name, content in contents.items() if content is not None}


def _added(table: object) -> dict[int, Declared]:
    """`added_tokens_decoder`, by id."""
    added: dict[int, Declared] = {}
    if not isinstance(table, dict):
        return added
    for key, given in cast("dict[str, object]", table).items():
        content = _content(given)
        entry = cast("dict[str, object]", given) if isinstance(given, dict) else {}
        if content is not None and key.isdigit():
            flags = (entry.get(f) is True for f in ("single_word", "lstrip", "rstrip"))
            special, normalized = entry.get("special") is True, entry.get("normalized") is True
            added[int(key)] = Declared(content, special, *flags, normalized=normalized)
    return dict(sorted(added.items()))


def _ids(value: object) -> tuple[int, ...]:
    """Token ids from an int, a list of ints or nothing."""
    values: Iterable[object] = cast("list[object]", value) if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)


def _template(folder: Path, entry: object) -> str | None:
    """The chat template: its own file first, then the one in `tokenizer_config.json`."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as cause:
            raise TokenizerError(f"cannot read {path}: {cause}") from cause
    return default_template(entry)


def default_template(entry: object) -> str | None:
    """The template itself, or the one called `default` of several."""
    if isinstance(entry, list):
        listed = cast("list[dict[str, object]]", entry)
        entry = {str(t.get("name")): t.get("template") for t in listed}
    if isinstance(entry, dict):
        entry = cast("dict[str, object]", entry).get("default")
    return entry if isinstance(entry, str) else None
