# SPDX-License-Identifier: MIT OR Apache-2.0
"""Vocabularies that the `tokenizers` library runs: those of `tokenizer.json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch_mi.errors import TokenizerError
from torch_mi.families.world import VOCABULARIES
from torch_mi.storage import write_text
from torch_mi.tokens.pieces import LOST, align, readable_bytes, token_bytes
from torch_mi.tokens.positions import EncodingWithOffsets
from torch_mi.tokens.settings import Settings
from torch_mi.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers

LARGEST = 2**32
"""Past the largest id that the tokenizers library can hold."""


class FastVocabulary(Vocabulary):
    """A tokenizer of the `tokenizers` library, with the tokens that a folder adds to it."""

    def __init__(self, backend: "tokenizers.Tokenizer", settings: Settings) -> None:
        self._backend = backend
        self._unknown = settings.named.get("unk_token")
        backend.no_truncation()
        backend.no_padding()
        _keep_spaces(backend)
        _add_declared(backend, settings)
        self.size = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        named = (backend.token_to_id(text) for text in settings.named.values())
        self._added = {i: token.content for i, token in added.items()}
        self.special = {i for i, token in added.items() if token.special}
        self.special |= {i for i in named if i is not None}
        self._context = backend.encode("a", add_special_tokens=False).ids[-1:]

    def ids(self, text: str, *, special: bool) -> list[int]:
        return self._encode(text, special=special).ids

    def encoding(self, text: str, *, special: bool) -> EncodingWithOffsets:
        found = self._encode(text, special=special)
        return EncodingWithOffsets(tuple(found.ids), tuple(found.tokens), tuple(found.offsets))

    def text(self, ids: Sequence[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)

    def spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        return align(ids, self.text)

    def token(self, token_id: int) -> str | None:
        return self._backend.id_to_token(token_id) if 0 <= token_id < LARGEST else None

    def find(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def piece(self, token_id: int) -> str | None:
        token = self.token(token_id)
        if token is None:
            return None
        if token_id in self._added:
            return self._added[token_id]
        if self._backend.decoder is None:
            return token
        text = self.text([*self._context, token_id]).removeprefix(self.text(self._context))
        raw = token_bytes(token) if LOST in text else None
        return text if raw is None else readable_bytes(raw)

    def is_unknown(self, token_id: int, word: str) -> bool:
        from tokenizers.models import BPE, WordLevel, WordPiece  # noqa: PLC0415

        model, unknown = self._backend.model, self._unknown
        if isinstance(model, BPE | WordLevel | WordPiece):
            unknown = model.unk_token or unknown
        return unknown == self.token(token_id) and word.strip() != unknown

    def prepend(self, token_id: int) -> None:
        from tokenizers import processors  # noqa: PLC0415

        token = cast("str", self.token(token_id))
        first = processors.TemplateProcessing(
            single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, token_id)]
        )
        steps = self._backend.post_processor
        self._backend.post_processor = (
            first if steps is None else processors.Sequence([steps, first])
        )

    def save(self, folder: Path) -> dict[str, object]:
        write_text(folder / "tokenizer.json", self._backend.to_str(pretty=True))
        for older in folder.glob(VOCABULARIES):  # it would be read instead
            older.unlink()
        return {}  # added tokens and a BOS put first are part of tokenizer.json by now

    def _encode(self, text: str, *, special: bool) -> "tokenizers.Encoding":
        try:
            return self._backend.encode(text, add_special_tokens=special)
        except Exception as cause:  # tokenizers raises nothing narrower
            raise TokenizerError(f"failed to encode {text[:40]!r}: {cause}") from cause


def _keep_spaces(backend: "tokenizers.Tokenizer") -> None:
    """Let a token's place in the text include its leading space, in every tokenizer alike."""
    steps = backend.post_processor
    if steps is None:
        return
    state = json.loads(steps.__getstate__(), object_hook=_untrimmed)
    steps.__setstate__(json.dumps(state).encode())  # the one way in for steps inside a sequence
    backend.post_processor = steps


def _untrimmed(step: dict[str, object]) -> dict[str, object]:
    return step | {"trim_offsets": False} if "trim_offsets" in step else step


def _add_declared(backend: "tokenizers.Tokenizer", settings: Settings) -> None:
    """Add the tokens that the folder declares beside `tokenizer.json`, under the ids it says."""
    from tokenizers import AddedToken  # noqa: PLC0415

    for token_id, declared in settings.added.items():
        if backend.token_to_id(declared.content) is not None:
            continue
        token = AddedToken(
            declared.content,
            single_word=declared.single_word,
            lstrip=declared.lstrip,
            rstrip=declared.rstrip,
            normalized=declared.normalized,
            special=declared.special,
        )
        backend.add_tokens([token])  # pyright: ignore[reportUnknownMemberType]
        given = backend.token_to_id(declared.content)
        if given != token_id:
            raise TokenizerError(
                f"tokenizer_config.json gives {declared.content!r} the id {token_id}, and "
                f"tokenizer.json makes it {given}"
            )
