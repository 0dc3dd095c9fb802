# SPDX-License-Identifier: MIT OR Apache-2.0
"""A config as JSON values and back, exactly.

Each dataclass within it says its kind, so that a rope's scaling is read as what it was.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from torch_mi.config.parts import member
from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError, did_you_mean

KIND = "kind"
JSON_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def config_to_json(cfg: TransformerConfig | RecurrentConfig) -> dict[str, object]:
    """A config as JSON values."""
    return {f.name: _plain(cfg.__dict__[f.name]) for f in fields(cfg)}


def config_from_json(data: Mapping[str, object]) -> TransformerConfig:
    """The transformer's config that `config_to_json` wrote down."""
    return cast("TransformerConfig", _object(TransformerConfig, data, "the config"))


def recurrent_from_json(data: Mapping[str, object]) -> RecurrentConfig:
    """The recurrent model's config that `config_to_json` wrote down."""
    return cast("RecurrentConfig", _object(RecurrentConfig, data, "the config"))


def _plain(value: object) -> object:
    if is_dataclass(value):
        inside = {f.name: _plain(value.__dict__[f.name]) for f in fields(value)}
        return {KIND: type(value).__name__, **inside}
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    return value.value if isinstance(value, Enum) else value


def _object(kind: Any, data: Mapping[str, object], where: str) -> object:
    """A dataclass of this kind; what is not written down has its default."""
    hints, parts = get_type_hints(kind), fields(kind)
    unknown = sorted(set(data) - set(hints) - {KIND})
    if unknown:
        near = did_you_mean(unknown[0], hints)
        raise ConfigError(f"{where} has no {unknown[0]!r}{near}")
    for part in parts:
        if part.name not in data and part.default is MISSING:
            raise ConfigError(f"{where} lacks {part.name!r}")
    return kind(
        **{
            part.name: _read(hints[part.name], data[part.name], f"{where}'s {part.name}")
            for part in parts
            if part.name in data
        }
    )


def _read(kind: Any, value: object, where: str) -> object:
    """A value of this kind, from JSON."""
    if isinstance(kind, UnionType):
        return _one_of(get_args(kind), value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}, not a list")
        items = cast("list[object]", value)
        return tuple(_read(get_args(kind)[0], v, f"{where}[{i}]") for i, v in enumerate(items))
    if is_dataclass(kind):
        return _object(kind, _kinded((kind,), value, where), where)
    if issubclass(kind, Enum):
        return member(kind, value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{where} is {value!r}, not {JSON_NAMES[kind]}")
    return value


def _one_of(kinds: tuple[Any, ...], value: object, where: str) -> object:
    """A value of one of these kinds, one of which may be nothing at all."""
    if value is None and NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    if len(kinds) == 1:
        return _read(kinds[0], value, where)
    data = _kinded(kinds, value, where)
    named = {kind.__name__: kind for kind in kinds}
    return _object(named[str(data[KIND])], data, where)


def _kinded(kinds: tuple[Any, ...], value: object, where: str) -> Mapping[str, object]:
    """A JSON object that says it is of one of these kinds."""
    names = [str(kind.__name__) for kind in kinds]
    data = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if data.get(KIND) not in names:
        raise ConfigError(f"{where} is {value!r}, not of the kind {' or '.join(names)}")
    return data
