# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tokens as readable text: vocabularies write spaces and raw bytes in alphabets of their own."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

LOST = "\ufffd"
"""What stands for bytes that are no whole character."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def _byte_alphabet() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for.

    Printable Latin-1 stands for itself; the other bytes, in order, are the letters from U+0100.
    """
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in itself]
    shifted = {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in sorted(itself)} | shifted


BYTE_ALPHABET = _byte_alphabet()
"""What byte-level vocabularies write for each byte, and that byte."""


def token_bytes(token: str) -> bytes | None:
    """The bytes a fragment of a character stands for, or None if the token is not one."""
    match = _BYTE_TOKEN.match(token)
    if match:
        return bytes([int(match[1], 16)])
    if all(letter in BYTE_ALPHABET for letter in token):
        return bytes(BYTE_ALPHABET[letter] for letter in token)
    return None


def readable_bytes(raw: bytes) -> str:
    """UTF-8 as text, with the bytes that are no whole character as `<0xE2>`.

    >>> readable_bytes(" é".encode()[:2])
    ' <0xC3>'
    """
    text = raw.decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda m: f"<0x{ord(m[0]) - 0xDC00:02X}>", text)


def align(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[tuple[int, int]]:
    """Where each token's text lies in `decode(ids)`; tokens that share a character share its place.

    Prefixes are decoded, from a token whose text is settled on, and compared with the whole. (If
    the text itself holds U+FFFD in several tokens, their places may be one character off.)
    """
    whole = decode(ids)
    spans: list[tuple[int, int]] = []
    anchor = group = 0  # where decoding starts, and where the characters still open start
    settled = base = head = 0  # in `whole`: text decided on, text before the group, the anchor's
    for index in range(len(ids)):
        tail = decode(ids[anchor : index + 1])[head:]
        start, settled = settled, base + _common(tail, whole, base)
        cut = settled < base + len(tail)  # the token ends inside a character
        spans.append((start, min(len(whole), settled + cut)))
        if not cut:
            anchor, group, base = group, index + 1, settled
            head = len(decode(ids[anchor:group]))
    return spans


def shared_spans(raw: bytes, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Where tokens of these sizes in bytes, one after the other, lie in the text of `raw`.

    A character that lies in several tokens belongs to each. Bytes that are no character are
    U+FFFD in the text, as `raw.decode(errors="replace")` has it.

    >>> shared_spans("né!".encode(), [2, 1, 1])
    [(0, 2), (1, 2), (2, 3)]
    """
    starts = _starts(raw)
    ends = accumulate(sizes, initial=0)
    return [(bisect_right(starts, a) - 1, bisect_left(starts, b)) for a, b in pairwise(ends)]


def _starts(raw: bytes) -> list[int]:
    """The byte at which each character starts, and the end."""
    starts = [0]
    for char in raw.decode(errors="replace"):
        width = _lost_width(raw, starts[-1]) if char == LOST else len(char.encode())
        starts.append(starts[-1] + width)
    return starts


def _lost_width(raw: bytes, start: int) -> int:
    """How many bytes one U+FFFD stands for: its own three, or those that are no character."""
    try:
        return len(raw[start : start + 3].decode().encode())
    except UnicodeDecodeError as cause:
        return cause.end


def _common(tail: str, whole: str, base: int) -> int:
    """How many characters of `tail` are those of `whole` from `base` on."""
    length = min(len(tail), len(whole) - base)
    if whole.startswith(tail, base):
        return len(tail)
    return next((i for i in range(length) if tail[i] != whole[base + i]), length)
