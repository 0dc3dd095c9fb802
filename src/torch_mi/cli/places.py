# SPDX-License-Identifier: MIT OR Apache-2.0
"""The options that name attention edges, layers and heads."""

import re
from typing import TYPE_CHECKING, Annotated

from typer import Option

from torch_mi.errors import InterventionError

if TYPE_CHECKING:
    from torch_mi.analysis.edges import AttentionEdge
    from torch_mi.model import MIModel

Strings = list[str] | None
Edge = Annotated[
    Strings,
    Option(
        "--edge",
        metavar="QUERY:KEY",
        help="From a token to one it looks at; a number (negative from the end) or the token.",
    ),
]
From = Annotated[
    Strings, Option("--from", metavar="QUERY", help="Everything that this token looks at.")
]
To = Annotated[Strings, Option("--to", metavar="KEY", help="Everything that looks at this token.")]
Layers = Annotated[
    str | None,
    Option("--layer", metavar="N[,N|-N]", help="Layers, as 3 or 1,4 or 2-5; all, if none."),
]
Heads = Annotated[
    str | None, Option("--head", metavar="N[,N|-N]", help="Heads, likewise; all, if none.")
]
Parts = tuple["tuple[int, ...] | None", "tuple[int, ...] | None", "tuple[AttentionEdge, ...]"]


def chosen(
    model: "MIModel",
    prompt: str,
    layers: str | None,
    heads: str | None,
    named: tuple[Strings, Strings, Strings],
) -> "Parts":
    """The layers, heads and edges that the options name."""
    from torch_mi.analysis.edges import AttentionEdge  # noqa: PLC0415 - needs torch

    edges, queries, keys = ([] if some is None else some for some in named)
    pairs = [_pair(text) for text in edges]
    pairs += [(query, None) for query in queries] + [(None, key) for key in keys]
    if not pairs:
        raise InterventionError("which attention? say --edge QUERY:KEY, --from QUERY or --to KEY")
    made = [
        AttentionEdge(*(None if end is None else position(model, prompt, end) for end in pair))
        for pair in pairs
    ]
    return numbered("layer", layers), numbered("head", heads), tuple(made)


def _pair(text: str) -> tuple[str, str]:
    query, colon, key = text.partition(":")
    if not colon or not query or not key:
        raise InterventionError(f"--edge {text!r} is not QUERY:KEY, as -1:0 or -1:France")
    return query, key


def position(model: "MIModel", prompt: str, place: str) -> int:
    """A position: a number, or the one token whose text this is."""
    from torch_mi.hooks.coordinates import Token  # noqa: PLC0415 - needs torch
    from torch_mi.prompts import spelt  # noqa: PLC0415

    if re.fullmatch(r"-?\d+", place):
        return int(place)
    from torch_mi.model import batch_of  # noqa: PLC0415 - torch loads late

    ids = batch_of(model, prompt).rows()[0]
    return Token(place).find(spelt(model.tokenizer, ids))


def numbered(what: str, text: str | None) -> tuple[int, ...] | None:
    """Numbers as 3 or 1,4 or 2-5.

    >>> numbered("layer", "1,4-6")
    (1, 4, 5, 6)
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if ends is None:
            raise InterventionError(f"--{what} {text!r} is not like 3 or 1,4 or 2-5")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first:
            raise InterventionError(f"--{what} {text!r} ends before it begins")
        found += range(first, last + 1)
    return tuple(found)
