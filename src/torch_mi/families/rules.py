# SPDX-License-Identifier: MIT OR Apache-2.0
"""Rules: how one field of a `TransformerConfig` is read from a `config.json`."""

import math
import reprlib
from collections.abc import Callable, Mapping, Set
from typing import TypeVar, cast

from torch_mi.config.activation import Activation
from torch_mi.errors import ConfigError, did_you_mean

T = TypeVar("T")

SHOWN = 5
"""How many keys an error message lists."""

EXACT = 2**53
"""Beyond this, whole numbers are not whole numbers in JSON."""

MOST = {"num_hidden_layers": 10_000}
"""How large a number may be that things are made from at once."""

JSON_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


class Reader:
    """A JSON object that types what it returns and remembers which keys it was asked for."""

    def __init__(
        self,
        raw: Mapping[str, object],
        name: str = "config.json",
        spelt: Mapping[str, str] | None = None,
    ) -> None:
        """`spelt` says what the object itself calls some of the keys of `raw`."""
        self._raw, self.name = raw, name
        self._spelt = spelt or {}
        self._read = set[str]()

    def called(self, key: str) -> str:
        """What the object itself calls a key."""
        return self._spelt.get(key, key)

    def get(self, kind: type[T], key: str) -> T | None:
        """The value of `key` as a `kind`; `None` if it is absent or null."""
        self._read.add(key)
        value = self._raw.get(key)
        if value is None:
            return None
        if kind is float and type(value) in (int, float):
            return cast("T", self._real(key, cast("float", value)))
        if type(value) is not kind:
            raise ConfigError(
                f"{self.name} has {self.called(key)} = {brief(value)} "
                f"where {JSON_NAMES[kind]} is needed"
            )
        if isinstance(value, int) and abs(value) > MOST.get(key, EXACT):
            raise ConfigError(
                f"{self.name} has {self.called(key)} = {brief(value)}, beyond any model"
            )
        return value

    def _real(self, key: str, value: int | float) -> float:  # noqa: PYI041 - checked as written
        """A number that can be computed with: JSON as Python reads it has others."""
        try:
            real = float(value)
        except OverflowError:  # a whole number of more than 308 digits
            real = math.inf
        if not math.isfinite(real):
            raise ConfigError(f"{self.name} has {self.called(key)} = {brief(value)}, not a number")
        return real

    @property
    def asked(self) -> frozenset[str]:
        """Every key that was looked at, be it there or not."""
        return frozenset(self._read)

    def need(self, kind: type[T], key: str) -> T:
        """The value of `key`, which must be set."""
        if (value := self.get(kind, key)) is None:
            name, known = self.called(key), [self.called(each) for each in self._raw]
            raise ConfigError(
                f"{self.name} lacks {name!r}, {JSON_NAMES[kind]}{did_you_mean(name, known)}"
            )
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers, which must be set."""
        values = cast("list[object]", self.need(list, key))
        items = {f"{key}[{i}]": value for i, value in enumerate(values)}
        reader = Reader(items, self.name)
        return tuple(reader.need(float, item) for item in items)

    def objects(self, *keys: str) -> dict[str, Mapping[str, object]]:
        """The nested objects that are set and not empty, by key."""
        found = {key: cast("dict[str, object]", self.get(dict, key) or {}) for key in keys}
        return {key: value for key, value in found.items() if value}

    def holds(self, kind: type, key: str) -> bool:
        """Whether `key` has a value of this kind."""
        return isinstance(self._raw.get(key), kind)

    def given(self, key: str) -> bool:
        """Whether `key` is there at all, be it null."""
        return key in self._raw

    def refuse_unread(self, inert: Set[str], whose: str) -> None:
        """Every key that is set must have been read, or be known to change nothing."""
        left = {key: value for key, value in self._raw.items() if value is not None}
        unread = sorted(set(left) - self._read - inert)
        if unread:
            said = ", ".join(f"{self.called(key)} = {brief(left[key])}" for key in unread[:SHOWN])
            more = f" and {len(unread) - SHOWN} more" if len(unread) > SHOWN else ""
            near = did_you_mean(unread[0], [self.called(key) for key in self._read | inert])
            raise ConfigError(f"{self.name}: {whose} has no use for {said}{more}{near}")


def brief(value: object) -> str:
    """A value, shortened to fit a message."""
    return reprlib.repr(value)


Rule = Callable[[Reader], object]


def constant(value: object) -> Rule:
    """The same answer for every config."""
    return lambda _: value


def integer(key: str, default: "int | Callable[[Reader], int] | None" = None) -> Rule:
    """A whole number; without a default it must be there."""

    def rule(c: Reader) -> int:
        if default is None:
            return c.need(int, key)
        found = c.get(int, key)
        if found is not None:
            return found
        return default(c) if callable(default) else default

    return rule


def number(key: str, default: float) -> Rule:
    """A real number, however JSON spelled it."""

    def rule(c: Reader) -> float:
        found = c.get(float, key)
        return default if found is None else found

    return rule


def nullable(key: str, default: float) -> Rule:
    """A real number where null means none, unlike absence, which means the default."""
    return lambda c: c.get(float, key) if c.given(key) else default


def flag(key: str, *, default: bool) -> Rule:
    """A truth value."""

    def rule(c: Reader) -> bool:
        found = c.get(bool, key)
        return default if found is None else found

    return rule


ACTIVATIONS = {
    "silu": Activation.Silu,
    "swish": Activation.Silu,
    "relu": Activation.Relu,
    "gelu": Activation.Gelu,
    "gelu_python": Activation.Gelu,
    "gelu_new": Activation.GeluTanh,
    "gelu_fast": Activation.GeluTanh,
    "gelu_accurate": Activation.GeluTanh,
    "gelu_python_tanh": Activation.GeluTanh,
    "gelu_pytorch_tanh": Activation.GeluTanh,
}
"""By the names that transformers gives them."""


def activation(key: str, default: str, meant: Mapping[str, str] | None = None) -> Rule:
    """The nonlinearity; `meant` says which names a family has always read as others."""

    def rule(c: Reader) -> Activation:
        name = c.get(str, key) or default
        name = (meant or {}).get(name, name)
        if name not in ACTIVATIONS:
            raise ConfigError(
                f"{c.name}: activation {name!r} is not modelled; "
                f"known are {', '.join(ACTIVATIONS)}{did_you_mean(name, ACTIVATIONS)}"
            )
        return ACTIVATIONS[name]

    return rule


def even_heads(c: Reader) -> int:
    """The model's width, shared out evenly among its heads."""
    width, heads = c.need(int, "hidden_size"), c.need(int, "num_attention_heads")
    if heads <= 0 or width <= 0 or width % heads:
        raise ConfigError(
            f"{c.name}: {heads} attention heads cannot share a width of {width} evenly"
        )
    return width // heads


HEAD_DIM = integer("head_dim", even_heads)
"""A head's width: what the config says, or an even share."""


def kv_heads(absent: int | None = None) -> Rule:
    """How many key/value heads; null is one for each query head, absence may mean otherwise."""

    def rule(c: Reader) -> int:
        found = c.get(int, "num_key_value_heads")
        if found is None and absent is not None and not c.given("num_key_value_heads"):
            return absent
        return c.need(int, "num_attention_heads") if found is None else found

    return rule


def root_width(c: Reader) -> float:
    """The square root of the model's width."""
    return math.sqrt(c.need(int, "hidden_size"))


def inverse_root(width: Rule) -> Rule:
    """One over the square root of what another rule says."""

    def rule(c: Reader) -> float:
        value = cast("float", width(c))
        if value <= 0:
            raise ConfigError(
                f"{c.name}: attention scores cannot be divided by the root of {value}"
            )
        return value**-0.5

    return rule


WINDOWED, WHOLE = "sliding_attention", "full_attention"
LAYER_KINDS = {WINDOWED: True, WHOLE: False, "attention": False}
"""Whether each kind of layer looks through the window."""


def windowed_layers(c: Reader) -> list[bool] | None:
    """What `layer_types` says, if it is there."""
    kinds = cast("list[object] | None", c.get(list, "layer_types"))
    if kinds is None:
        return None
    layers = c.need(int, "num_hidden_layers")
    if len(kinds) != layers:
        raise ConfigError(f"{c.name}: {len(kinds)} layer_types for {layers} layers")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in LAYER_KINDS:
            raise ConfigError(
                f"{c.name}: layers of type {kind!r} are not modelled; "
                f"known are {', '.join(LAYER_KINDS)}"
            )
    return [LAYER_KINDS[cast("str", kind)] for kind in kinds]


def windows_in(layers: list[bool], window: int | None, c: Reader) -> tuple[int | None, ...]:
    """The window in some layers, none in others."""
    if window is None and any(layers):
        raise ConfigError(f"{c.name}: layer_types has {WINDOWED!r} but there is no sliding_window")
    return tuple(window if windowed else None for windowed in layers)


def no_window(c: Reader) -> tuple[int | None, ...]:
    """Every layer looks all the way back."""
    return same_everywhere(None, c)


def every_layer(absent: int | None = None) -> Rule:
    """The same sliding window in every layer, or none if it is null."""

    def rule(c: Reader) -> tuple[int | None, ...]:
        return same_everywhere(read_window(c, absent), c)

    return rule


def read_window(c: Reader, absent: int | None) -> int | None:
    """The sliding window: null is none, absence is the family's default."""
    return c.get(int, "sliding_window") if c.given("sliding_window") else absent


def same_everywhere(window: int | None, c: Reader) -> tuple[int | None, ...]:
    """One window for all layers. These families do not read `layer_types`: it may only agree."""
    listed = windowed_layers(c)
    if listed is not None and any(kind != (window is not None) for kind in listed):
        raise ConfigError(
            f"{c.name}: every layer of this model_type has sliding_window = {window}, "
            "but layer_types says otherwise"
        )
    return (window,) * c.need(int, "num_hidden_layers")


def alternating(c: Reader) -> tuple[int | None, ...]:
    """Even layers look through a window and odd ones do not, unless `layer_types` is there."""
    layers = windowed_layers(c)
    if layers is None:
        layers = [i % 2 == 0 for i in range(c.need(int, "num_hidden_layers"))]
    return windows_in(layers, read_window(c, 4096), c)


def upper_layers(c: Reader) -> tuple[int | None, ...]:
    """If windows are used at all, they are in the layers from `max_window_layers` on."""
    window = read_window(c, 4096)
    window = window if c.get(bool, "use_sliding_window") else None
    first = c.get(int, "max_window_layers")
    first = 28 if first is None else first
    layers = windowed_layers(c)
    if layers is None:
        numbers = range(c.need(int, "num_hidden_layers"))
        layers = [window is not None and i >= first for i in numbers]
    return windows_in(layers, window, c)
