# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tokenizer of the World models: bytes, of which the longest token that fits is taken.

There are no merges and no pattern that cuts a text first. Tokens may begin and end inside a
character. (BlinkDL/ChatRWKV, `tokenizer/rwkv_tokenizer.py`)
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch_mi.errors import TokenizerError
from torch_mi.families.world import END_OF_TEXT, ROWS, VOCABULARIES
from torch_mi.storage import write_text
from torch_mi.tokens.pieces import readable_bytes, shared_spans
from torch_mi.tokens.positions import EncodingWithOffsets
from torch_mi.tokens.settings import Declared, Settings
from torch_mi.tokens.vocabulary import Vocabulary
from torch_mi.tokens.vocabulary_file import read_vocabulary_file, vocabulary_text

END = 0
"""The token that ends a text, begins one and fills up batches; vocabulary files lack it."""


class WorldVocabulary(Vocabulary):
    """Byte strings by id, and `added` tokens that are found in a text before anything else.

    `name` is that of the file it is saved in. Two tokens are never the same bytes.
    """

    def __init__(
        self,
        tokens: Mapping[int, bytes],
        added: Mapping[int, Declared],
        special: Iterable[int],
        name: str,
    ) -> None:
        self._tokens, self._added, self._name = tokens, added, name
        self._bytes = {**tokens, **{i: _utf8(token.content) for i, token in added.items()}}
        self._ids = {raw: i for i, raw in tokens.items()}
        self._lengths = _lengths(self._ids)
        self._named = {token.content: i for i, token in added.items()}
        longest_first = sorted(self._named, key=len, reverse=True)
        self._cuts = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        fragments = [raw for raw in self._ids if raw.decode(errors="ignore").encode() != raw]
        self._fragments = {readable_bytes(raw): self._ids[raw] for raw in fragments}
        self._first: list[int] = []
        self.size = max(self._bytes) + 1
        self.special = frozenset(special)

    def ids(self, text: str, *, special: bool) -> list[int]:
        ids = self._first.copy() if special else []
        before = 0
        for part in self._cuts.split(text):
            raw = part.encode()
            ids += [self._named[part]] if part in self._named else self._longest(raw, before)
            before += len(raw)
        return ids

    def encoding(self, text: str, *, special: bool) -> EncodingWithOffsets:
        around = self._first if special else []
        ids = self.ids(text, special=False)
        spans = shared_spans(text.encode(), [len(self._bytes[i]) for i in ids])
        whole = (*around, *ids)
        tokens = tuple(readable_bytes(self._bytes[i]) for i in whole)
        return EncodingWithOffsets(whole, tokens, ((0, 0),) * len(around) + tuple(spans))

    def text(self, ids: Sequence[int]) -> str:
        return self._joined(ids).decode(errors="replace")

    def spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        return shared_spans(self._joined(ids), [len(self._bytes[i]) for i in ids])

    def token(self, token_id: int) -> str | None:
        return readable_bytes(self._bytes[token_id]) if token_id in self._bytes else None

    def find(self, token: str) -> int | None:
        if token in self._named:
            return self._named[token]
        return self._ids.get(_utf8(token), self._fragments.get(token))

    def has(self, token_id: int) -> bool:
        return token_id in self._bytes

    def piece(self, token_id: int) -> str | None:
        return self.token(token_id)

    def is_unknown(self, token_id: int, word: str) -> bool:  # noqa: ARG002 - bytes are never unknown
        return False

    def prepend(self, token_id: int) -> None:
        self._first.append(token_id)

    def save(self, folder: Path) -> dict[str, object]:
        write_text(folder / self._name, vocabulary_text(self._tokens))
        older = [*folder.glob(VOCABULARIES), *folder.glob("tokenizer.json")]  # saved there before
        for path in older:
            if path.name != self._name:
                path.unlink()
        kept = {
            i: Declared(readable_bytes(self._tokens[i]), special=True)
            for i in self.special & self._tokens.keys()
        }
        said = {str(i): asdict(token) for i, token in sorted({**self._added, **kept}.items())}
        return {"added_tokens_decoder": said}

    def _joined(self, ids: Sequence[int]) -> bytes:
        return b"".join([self._bytes[i] for i in ids])

    def _longest(self, raw: bytes, before: int) -> list[int]:
        """The ids of bytes that `before` others precede in the text."""
        ids, at, known = list[int](), 0, self._ids
        while at < len(raw):
            for length in self._lengths.get(raw[at : at + 2], (1,)):
                token_id = known.get(raw[at : at + length])  # shorter at the end, and still right
                if token_id is not None:
                    ids.append(token_id)
                    at += length
                    break
            else:
                raise TokenizerError(
                    f"no token of the vocabulary begins with byte 0x{raw[at]:02X}, which is byte "
                    f"{before + at} of the text"
                )
        return ids


def read_world(path: Path, settings: Settings) -> tuple[WorldVocabulary, Settings]:
    """The vocabulary in a file, and a folder's settings completed by what it has by nature."""
    tokens = read_vocabulary_file(path)
    known = {raw: i for i, raw in tokens.items()}
    declared = {END: Declared(END_OF_TEXT, special=True), **settings.added}
    added = {i: token for i, token in declared.items() if _is_new(i, token, tokens, known)}
    there = {i for i, token in settings.added.items() if tokens.get(i) == _utf8(token.content)}
    special = {i for i in there | added.keys() if declared[i].special or i == END}
    found = {token.content for token in added.values()}
    end = declared[END].content
    by_nature = dict.fromkeys(("bos_token", "eos_token", "pad_token"), end)
    said = {k: v for k, v in settings.named.items() if v in found or _utf8(v) in known}
    complete = replace(
        settings,
        named=by_nature | said,
        eos_ids=(END, *settings.eos_ids),
        model_vocab=settings.model_vocab or ROWS,
    )
    return WorldVocabulary(tokens, added, special, path.name), complete


def _is_new(
    token_id: int, token: Declared, tokens: Mapping[int, bytes], known: Mapping[bytes, int]
) -> bool:
    """Whether a declared token is to be added: what the vocabulary has, it has under its own id.

    (Folders name two newlines as what ends a turn, and transformers adds a token for them.)
    """
    if not token.content or _utf8(token.content) in known:
        return False
    if token_id in tokens:
        raise TokenizerError(
            f"tokenizer_config.json gives {token.content!r} the id {token_id}, which is "
            f"{readable_bytes(tokens[token_id])!r} in the vocabulary file"
        )
    if token.single_word or token.lstrip or token.rstrip:
        raise TokenizerError(
            f"tokenizer_config.json has {token.content!r} take in or keep off what stands beside "
            "it (lstrip, rstrip, single_word), which tokens added to a World vocabulary cannot"
        )
    return True


def _lengths(known: Iterable[bytes]) -> dict[bytes, tuple[int, ...]]:
    """First two bytes -> how long the tokens are that begin so, longest first, then 1."""
    found = dict[bytes, set[int]]()
    for raw in known:
        if len(raw) > 1:
            found.setdefault(raw[:2], {1}).add(len(raw))
    return {start: tuple(sorted(lengths, reverse=True)) for start, lengths in found.items()}


def _utf8(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
