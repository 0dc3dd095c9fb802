# SPDX-License-Identifier: MIT OR Apache-2.0
"""The text files that World models keep their vocabulary in.

Each line is `<id> <Python literal> <length in bytes>`. A `'...'` stands for its UTF-8, a `b'...'`
for its bytes; either may be in double quotes. (BlinkDL/ChatRWKV, `tokenizer/`)
"""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Never

from torch_mi.errors import TokenizerError
from torch_mi.tokens.pieces import readable_bytes

_LINE = re.compile(r"([0-9]{1,9}) (.+) ([0-9]{1,9})")
_ESCAPES = r"""[tnrabfv\\'"]|0(?![0-7])|x[0-9a-fA-F]{2}"""
_WIDE_ESCAPES = "u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}"


def _quoted(escapes: str, barred: str = "") -> str:
    """What matches one literal without its prefix."""
    return "|".join(rf"{q}(?:[^{q}\\{barred}]|\\(?:{escapes}))*{q}" for q in ("'", '"'))


_TEXT = _quoted(f"{_ESCAPES}|{_WIDE_ESCAPES}")
_BYTES = _quoted(_ESCAPES, barred="\x80-\U0010ffff")
_LITERAL = re.compile(f"(?:{_TEXT})|b(?:{_BYTES})")
"""One literal and nothing else; a bytes literal holds ASCII."""


def read_vocabulary_file(path: Path) -> dict[int, bytes]:
    """Token id -> bytes; a line that is wrong is an error that names it."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as cause:
        raise TokenizerError(f"cannot read {path}: {cause}") from cause
    if not lines[-1]:
        lines.pop()
    tokens, seen = dict[int, bytes](), dict[bytes, int]()
    for number, line in enumerate(lines, 1):
        try:
            token_id, raw = _read(line)
            if token_id == 0 or token_id in tokens or raw in seen:
                _refuse(token_id, tokens.get(token_id), seen.get(raw))
        except (SyntaxError, ValueError) as cause:
            raise TokenizerError(f"{path}, line {number}, {line[:60]!r}: {cause}") from cause
        tokens[token_id] = raw
        seen[raw] = token_id
    if not tokens:
        raise TokenizerError(f"{path} holds no tokens")
    return tokens


def vocabulary_text(tokens: Mapping[int, bytes]) -> str:
    """The file that `read_vocabulary_file` reads."""
    return "".join(f"{i} {_literal(raw)} {len(raw)}\n" for i, raw in tokens.items())


def _read(line: str) -> tuple[int, bytes]:
    """The id and the bytes on a line; `ValueError` or `SyntaxError` if there are none."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError("a line is '<id> <Python literal> <length in bytes>'")
    literal, said = match[2], int(match[3])
    if _LITERAL.fullmatch(literal) is None:
        raise ValueError("between the numbers stands one literal, '...' or b'...'")
    if "\\" in literal:
        value: str | bytes = ast.literal_eval(literal)
    else:  # most of them, and many times faster
        value = literal.removeprefix("b")[1:-1]
    raw = value if isinstance(value, bytes) else value.encode()
    if not raw:
        raise ValueError("the literal is empty")
    if len(raw) != said:
        raise ValueError(f"the literal is {len(raw)} bytes long, not {said}")
    return int(match[1]), raw


def _refuse(token_id: int, other: bytes | None, twin: int | None) -> Never:
    """Say why a token cannot be beside those before it."""
    if token_id == 0:
        raise ValueError("token 0 is the end of a text, and has no line")
    if other is not None:
        raise ValueError(f"token {token_id} is {readable_bytes(other)!r} already")
    raise ValueError(f"these bytes are token {twin} already")


def _literal(raw: bytes) -> str:
    try:
        return repr(raw.decode())
    except UnicodeDecodeError:
        return repr(raw)
