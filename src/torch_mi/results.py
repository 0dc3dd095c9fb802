# SPDX-License-Identifier: MIT OR Apache-2.0
"""What every analysis returns: a value that can be read, drawn, saved and loaded."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

from torch import Tensor

from torch_mi.errors import FileError, MIError, ModelError
from torch_mi.storage import read_json, write_json
from torch_mi.types import numbers

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from torch_mi.model import MIModel

R = TypeVar("R")


class Result(ABC):
    """A frozen dataclass with JSON inside and out; how it looks is the business of `show`."""

    form: ClassVar[str]
    """What its JSON calls itself, with a version."""

    @abstractmethod
    def to_dict(self) -> dict[str, object]:
        """This, as JSON values; it needs no second file to be understood."""

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """The result that `to_dict` took apart."""
        return unpack(data, cls.form, cls._build)

    @classmethod
    @abstractmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        """The result from JSON values of the right form."""

    def save(self, path: str | Path) -> Path:
        """Write to `path` as JSON."""
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        data = read_json(path)
        try:
            return cls.from_dict(data)
        except FileError as cause:
            raise FileError(f"cannot load {path}: {cause}") from cause

    def plot(self) -> "Figure":
        """A plotly figure; needs `pip install torch-mi[viz]`."""
        from torch_mi import show  # noqa: PLC0415 - results know nothing of how they look

        return show.plot(self)

    def __repr__(self) -> str:
        from torch_mi import show  # noqa: PLC0415 - results know nothing of how they look

        return show.text(self)

    def _repr_html_(self) -> str:
        from torch_mi import show  # noqa: PLC0415 - results know nothing of how they look

        return show.html(self)


def unpack(data: Mapping[str, object], form: str, build: Callable[[dict[str, Any]], R]) -> R:
    """What `build` makes of a saved result that says it has this `form`."""
    if data.get("format") != form:
        raise FileError(f"this is no {form}: its format is {data.get('format')!r}")
    try:
        return build(cast("dict[str, Any]", data))
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise FileError(f"this {form} is broken: {cause!r}") from cause


def data_frame(rows: list[dict[str, object]]) -> Any:
    """A pandas DataFrame of these rows."""
    try:
        import pandas as pd  # noqa: PLC0415 - optional
    except ImportError as cause:
        raise MIError("tables for pandas need pandas: pip install pandas") from cause
    return pd.DataFrame(rows)


def floats(x: Tensor) -> list[float]:
    """The entries of a tensor of one axis."""
    return x.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def format_probability(p: float) -> str:
    """A probability as a percentage that keeps small ones apart.

    >>> [format_probability(p) for p in (0.123, 0.00123, 1.2e-6, 0.0)]
    ['12.3%', '0.123%', '1.2e-4%', '0.0e0%']
    """
    percent = 100 * p
    if percent >= 1:
        return f"{percent:.1f}%"
    if percent >= 0.01:  # noqa: PLR2004 - below, three decimals would show nothing
        return f"{percent:.3f}%"
    mantissa, exponent = f"{percent:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}%"


def format_token(token: str) -> str:
    r"""A token on one line: newlines, tabs and returns as `\n`, `\t`, `\r`."""
    return token.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def predicts_tokens(model: "MIModel") -> bool:
    """Whether there is a logit for each token that can be read."""
    return model.backend.sizes["vocab"] == model.vocab_size


def pieces_of(model: "MIModel", ids: list[int], *, output: bool = False) -> tuple[str, ...]:
    """What each token id stands for: its text, or its number where there is none.

    With `output`, they count logits, which need not stand for tokens.
    """
    if not model.has_tokenizer or (output and not predicts_tokens(model)):
        return tuple(map(str, ids))
    return tuple(model.tokenizer.to_str_tokens(ids))


def spoken(model: "MIModel", token: int) -> str | int:
    """A token's text, where that names it and no other; its number elsewhere."""
    if not model.has_tokenizer or not predicts_tokens(model):
        return token
    text = model.decode([token])
    return text if model.tokenizer.encode_raw(text) == [token] else token


def special_in(model: "MIModel", ids: list[int]) -> tuple[bool, ...]:
    """Which token ids stand for structure, not for text."""
    if not model.has_tokenizer:
        return (False,) * len(ids)
    return tuple(model.tokenizer.is_special(i) for i in ids)


def position_in(length: int, position: int) -> int:
    """A position of a prompt of this length, counted from its start."""
    if not -length <= position < length:
        raise ModelError(
            f"position={position} is out of range: the prompt has {length} tokens "
            f"(0 … {length - 1}, or negative from the end)"
        )
    return position % length


def text_of(model: "MIModel", prompt: "Tensor | list[int]") -> str:
    """The text of one prompt's token ids, or the ids themselves where there is no tokenizer."""
    ids = numbers(prompt.reshape(-1)) if isinstance(prompt, Tensor) else prompt
    return model.decode(ids) if model.has_tokenizer else " ".join(map(str, ids))


def describe(model: "MIModel") -> str:
    """A model in one line."""
    heads, sizes = "", model.backend.sizes
    if "head" in sizes:
        heads = f"{model.num_heads} heads, "
    if "kv_head" in sizes and model.num_kv_heads != model.num_heads:
        heads = f"{model.num_heads} heads ({model.num_kv_heads} for keys and values), "
    family = f"{model.origin.family}, inferred" if model.origin.assumed else model.origin.family
    vocabulary = f"vocabulary {model.vocab_size}"
    if not predicts_tokens(model):
        vocabulary += f" and {model.backend.sizes['vocab']} logits"
    return (
        f"<MIModel {model.origin.model_id!r} ({family}): {model.num_layers} layers, "
        f"d_model {model.hidden_size}, {heads}{vocabulary}, "
        f"{model.num_parameters / 1e6:,.1f} M parameters, "
        f"{str(model.dtype).removeprefix('torch.')} on {model.device}>"
    )
