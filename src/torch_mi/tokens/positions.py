# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where each token lies in its text, and the way back.

Every position is an index into the Python string (a code point), so `text[start:end]` is the part
of the text that a token stands for. Tokens that stand for no text (BOS and its like) are zero-width
and answer no question about characters.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch_mi.errors import TokenizerError

OTHER = "other"
"""The label of a token that lies in none of the named spans."""


@dataclass(frozen=True)
class TokenWithOffset:
    """One token and the part of the text `[start, end)` that it stands for."""

    token: str
    start: int
    end: int


@dataclass(frozen=True)
class PositionConversion:
    """The token found for one character; `exact_match` is False if it is only the nearest one."""

    char_pos: int
    token_idx: int | None
    token: str | None
    exact_match: bool


@dataclass(frozen=True)
class EncodingWithOffsets:
    """Token ids, the tokens as written in the vocabulary, and where each lies in the text.

    >>> encoding = EncodingWithOffsets((5, 6), ("The", " sun"), ((0, 3), (3, 7)))
    >>> encoding.char_to_token(4)
    1
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "offsets", tuple((a, b) for a, b in self.offsets))
        if not len(self.ids) == len(self.tokens) == len(self.offsets):
            raise TokenizerError(
                f"an encoding needs as many ids as tokens and offsets, not {len(self.ids)} ids, "
                f"{len(self.tokens)} tokens and {len(self.offsets)} offsets"
            )
        for index, (start, end) in enumerate(self.offsets):
            if not 0 <= start <= end:
                raise TokenizerError(f"token {index} has the impossible offsets ({start}, {end})")

    def __len__(self) -> int:
        return len(self.ids)

    def is_empty(self) -> bool:
        return not self.ids

    def tokens_with_offsets(self) -> list[TokenWithOffset]:
        """Every token with its part of the text."""
        return [
            TokenWithOffset(token, start, end)
            for token, (start, end) in zip(self.tokens, self.offsets, strict=True)
        ]

    def _in_text(self) -> list[tuple[int, int, int]]:
        """Index, start and end of every token that stands for some text."""
        return [(i, a, b) for i, (a, b) in enumerate(self.offsets) if a < b]

    def char_to_token(self, char: int) -> int | None:
        """The first token that covers character `char`, or None."""
        return next((i for i, a, b in self._in_text() if a <= char < b), None)

    def char_to_token_fuzzy(self, char: int) -> int | None:
        """The token that covers `char`, else the one with the nearest middle (ties: the first)."""
        exact = self.char_to_token(char)
        if exact is not None:
            return exact
        spans = self._in_text()
        return min(spans, key=lambda s: abs(char - (s[1] + s[2]) // 2))[0] if spans else None

    def char_to_token_start(self, char: int) -> int | None:
        """The first token that starts at `char` or later, or None."""
        return next((i for i, a, _ in self._in_text() if a >= char), None)

    def char_range_to_tokens(self, start: int, end: int) -> list[int]:
        """Every token that overlaps the characters `[start, end)`."""
        return [i for i, a, b in self._in_text() if b > start and a < end]

    def token_to_char_range(self, index: int) -> tuple[int, int] | None:
        """The characters `[start, end)` of token `index`, or None if there is no such token."""
        return self.offsets[index] if 0 <= index < len(self.offsets) else None

    def label_spans(self, spans: Sequence[tuple[str, tuple[int, int]]]) -> list[str]:
        """One label for each token: the first span it overlaps, or `other`.

        The last token that carries a span's name is labelled `<name>_final`.
        """
        labels = [OTHER] * len(self)
        for index, a, b in self._in_text():
            labels[index] = next((n for n, (s, e) in spans if b > s and a < e), OTHER)
        for name in dict.fromkeys(name for name, _ in spans):
            carriers = [i for i, label in enumerate(labels) if label == name]
            if carriers:
                labels[carriers[-1]] = f"{name}_final"
        return labels


def convert_positions(
    encoding: EncodingWithOffsets, chars: Iterable[int]
) -> list[PositionConversion]:
    """For each character its token: the one that covers it, else the nearest."""
    conversions: list[PositionConversion] = []
    for char in chars:
        exact = encoding.char_to_token(char)
        index = encoding.char_to_token_fuzzy(char) if exact is None else exact
        token = None if index is None else encoding.tokens[index]
        conversions.append(PositionConversion(char, index, token, exact is not None))
    return conversions


def char_to_byte(text: str, char: int) -> int:
    """The UTF-8 byte offset at which character `char` of `text` starts (its length: the end).

    >>> char_to_byte("né!", 2)
    3
    """
    if not 0 <= char <= len(text):
        raise TokenizerError(f"character {char} is outside a text of {len(text)} characters")
    return len(text[:char].encode("utf-8", "surrogatepass"))


def byte_to_char(text: str, byte: int) -> int:
    """The character of `text` that holds UTF-8 byte `byte` (the byte length: the end).

    >>> byte_to_char("né!", 3)
    2
    """
    return bytes_to_chars(text, [byte])[0]


def bytes_to_chars(text: str, offsets: Iterable[int]) -> list[int]:
    """`byte_to_char` for many offsets, with one pass over the text."""
    widths = (len(c.encode("utf-8", "surrogatepass")) for c in text)
    starts = list(accumulate(widths, initial=0))
    total = starts[-1]
    chars: list[int] = []
    for byte in offsets:
        if not 0 <= byte <= total:
            raise TokenizerError(f"byte {byte} is outside a text of {total} bytes")
        chars.append(bisect_right(starts, byte) - 1)
    return chars


def char_spans(text: str, byte_spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in UTF-8 bytes as spans in characters; a character cut in two is taken whole."""
    spans = list(byte_spans)
    starts = bytes_to_chars(text, [start for start, _ in spans])
    ends = bytes_to_chars(text, [end for _, end in spans])
    return [
        (a, b if char_to_byte(text, b) == end or b == a == end else b + 1)
        for (_, end), a, b in zip(spans, starts, ends, strict=True)
    ]
