# SPDX-License-Identifier: MIT OR Apache-2.0
"""Text to token ids and back, as the model was trained to read it."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, SupportsIndex, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_mi.errors import TokenizerError
from torch_mi.storage import write_json
from torch_mi.tokens.fast import FastVocabulary
from torch_mi.tokens.folder import open_folder
from torch_mi.tokens.positions import EncodingWithOffsets
from torch_mi.tokens.settings import NAMED, Settings, default_template, settings_to_json
from torch_mi.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers

Ids = SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer] | Tensor
"""Token ids as people have them: one, a list, or an array or tensor of none or one dimension."""


@runtime_checkable
class HFTokenizer(Protocol):
    """The part of a transformers fast tokenizer that is read here."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    chat_template: object
    special_tokens_map: Mapping[str, object]

    @property
    def backend_tokenizer(self) -> "tokenizers.Tokenizer": ...


class MITokenizer:
    """A model's tokenizer.

    All positions are indices into Python strings. Spaces before a word belong to its token.
    """

    bos_id: int | None
    """What begins a text, if this tokenizer has such a token."""
    eos_ids: tuple[int, ...]
    """Every token that ends a text."""
    pad_id: int | None
    """What fills up a batch, if this tokenizer has such a token."""
    vocab_size: int
    """How many tokens there are, added ones included; the model may have more rows than that."""

    def __init__(
        self, backend: "tokenizers.Tokenizer | Vocabulary", settings: Settings | None = None
    ) -> None:
        self._settings = settings = settings or Settings()
        known = isinstance(backend, Vocabulary)
        self._vocabulary = backend if known else FastVocabulary(backend, settings)
        self.vocab_size = self._vocabulary.size
        self._prepare_bos()
        eos = self._named("eos_token")
        listed = (*(() if eos is None else (eos,)), *settings.eos_ids)
        self.eos_ids = tuple(dict.fromkeys(i for i in listed if self._has(i)))
        pad = self._named("pad_token") if "pad_token" in settings.named else settings.pad_id
        self.pad_id = pad if pad is not None and self._has(pad) else None
        self._pieces: dict[int, str] = {}

    @classmethod
    def from_folder(
        cls, folder: str | Path, config: Mapping[str, object] | None = None
    ) -> "MITokenizer":
        """The tokenizer in a model folder: `rwkv_vocab*.txt`, or else `tokenizer.json`.

        `config` stands in for the folder's `config.json`.
        """
        return cls(*open_folder(Path(folder).expanduser(), config))

    @classmethod
    def from_hf(cls, tokenizer: object) -> "MITokenizer":
        """A transformers fast tokenizer, or one of the `tokenizers` library; it is copied."""
        from tokenizers import Tokenizer  # noqa: PLC0415

        if isinstance(tokenizer, Tokenizer):
            return cls(Tokenizer.from_str(tokenizer.to_str()))
        if not isinstance(tokenizer, HFTokenizer):
            raise TokenizerError(
                f"a {type(tokenizer).__name__} is not a fast tokenizer; give a transformers "
                "tokenizer with is_fast, or a tokenizers.Tokenizer"
            )
        table = tokenizer.special_tokens_map
        eos = tokenizer.eos_token_id
        settings = Settings(
            named={name: str(table[name]) for name in NAMED if name in table},
            bos_id=tokenizer.bos_token_id,
            eos_ids=() if eos is None else (eos,),
            pad_id=tokenizer.pad_token_id,
            chat_template=default_template(tokenizer.chat_template),
        )
        return cls(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), settings)

    def save(self, folder: str | Path) -> None:
        """Write this where `from_folder` finds it, the ids of `config.json` aside."""
        folder = Path(folder).expanduser()
        said = settings_to_json(self._settings) | self._vocabulary.save(folder)
        write_json(folder / "tokenizer_config.json", said)

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as the model expects it: with BOS and its like, where it has them."""
        return self._vocabulary.ids(self._check(text), special=True)

    def encode_raw(self, text: str) -> list[int]:
        """The ids of `text` and nothing else."""
        return self._vocabulary.ids(self._check(text), special=False)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for several texts."""
        if isinstance(texts, str):
            raise TokenizerError("encode_batch takes a list of texts; encode takes one text")
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, text: str) -> EncodingWithOffsets:
        """`encode`, and where each token lies in `text`; added tokens lie at (0, 0)."""
        return self._vocabulary.encoding(self._check(text), special=True)

    def encode_raw_with_offsets(self, text: str) -> EncodingWithOffsets:
        """`encode_raw`, and where each token lies in `text`."""
        return self._vocabulary.encoding(self._check(text), special=False)

    def decode(self, ids: Ids, *, skip_special: bool = False) -> str:
        """The text of token ids, special tokens included unless they are to be skipped."""
        special = self._vocabulary.special
        kept = [i for i in self._ids(ids) if not (skip_special and i in special)]
        return self._vocabulary.text(kept)

    def decode_token(self, token_id: SupportsIndex) -> str:
        """One token as it reads in the middle of a text, its leading space included."""
        return self.to_str_tokens([token_id])[0]

    def to_str_tokens(self, ids: Ids) -> list[str]:
        """Each token as it reads in the middle of a text.

        Spaces are spaces; a token that is no whole character shows its bytes, as `<0xF0>`.
        """
        return [self._piece(i) for i in self._ids(ids, rows=True)]

    def offsets_of(self, ids: Ids) -> EncodingWithOffsets:
        """Where each token lies in `decode(ids)`; special tokens are zero-width there."""
        listed = self._ids(ids)
        spans = zip(listed, self._vocabulary.spans(listed), strict=True)
        offsets = [(a, a if i in self._vocabulary.special else b) for i, (a, b) in spans]
        tokens = [cast("str", self._vocabulary.token(i)) for i in listed]
        return EncodingWithOffsets(tuple(listed), tuple(tokens), tuple(offsets))

    def is_special(self, token_id: SupportsIndex) -> bool:
        """Whether a token stands for structure (BOS, a turn of a chat), not for text."""
        return self._ids(token_id, rows=True)[0] in self._vocabulary.special

    def token_to_id(self, token: str) -> int | None:
        """The id of a token written as in the vocabulary (`Ġthe`, `▁the`), or None."""
        return self._vocabulary.find(token)

    def find_token_id(self, word: str) -> int:
        """The one token that `word` is: with a space before it if there is such a token."""
        self._check(word)
        if not word:
            raise TokenizerError("an empty word is no token")
        spaced = word.startswith(" ")
        for candidate in (word, word[1:]) if spaced else (f" {word}", word):
            ids = self.encode_raw(candidate) if candidate else []
            if len(ids) != 1 or self._vocabulary.is_unknown(ids[0], candidate):
                continue
            if candidate == word or not spaced or self._piece(ids[0]).startswith(" "):
                return ids[0]
        raise TokenizerError(self._not_one_token(word))

    def chat_template(
        self,
        messages: str | Sequence[Mapping[str, object]],
        system_prompt: str | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str | None:
        """A conversation as the model's chat text, or None if the model has no chat template.

        The text holds its own special tokens: encode it with `encode_raw`.
        """
        from torch_mi.tokens.chat import conversation, render  # noqa: PLC0415

        if self._settings.chat_template is None:
            return None
        return render(
            self._settings.chat_template,
            conversation(messages, system_prompt),
            self._settings.named,
            add_generation_prompt=add_generation_prompt,
        )

    def __repr__(self) -> str:
        return f"MITokenizer({self.vocab_size} tokens)"

    def _prepare_bos(self) -> None:
        """Find BOS, and have it put first where the folder asks for it and nothing does it yet."""
        named = "bos_token" in self._settings.named
        declared = self._named("bos_token") if named else self._settings.bos_id
        first = self._vocabulary.ids("", special=True)[:1]
        if first and declared is None:
            declared = first[0]
        self.bos_id = declared if declared is not None and self._has(declared) else None
        if self._settings.add_bos and self.bos_id is not None and self.bos_id not in first:
            self._vocabulary.prepend(self.bos_id)

    def _named(self, name: str) -> int | None:
        """The id of one of the special tokens that have names."""
        text = self._settings.named.get(name)
        return None if text is None else self._vocabulary.find(text)

    def _has(self, token_id: int) -> bool:
        return self._vocabulary.has(token_id)

    def _check(self, text: object) -> str:
        if not isinstance(text, str):
            raise TokenizerError(f"text must be a str, not a {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as cause:
            raise TokenizerError(
                f"the text holds a lone surrogate at character {cause.start}, which no token can be"
            ) from cause
        return text

    def _ids(self, ids: object, *, rows: bool = False) -> list[int]:
        """Checked ids; with `rows`, ids that only the model has rows for are let through."""
        if isinstance(ids, np.ndarray):
            ids = torch.as_tensor(ids)
        if isinstance(ids, Tensor):
            if ids.ndim > 1 or ids.is_floating_point() or ids.is_complex():
                raise TokenizerError(
                    f"token ids must be whole numbers in one row, not a {ids.dtype} tensor of "
                    f"shape {tuple(ids.shape)}; give one row, as in tokens[0]"
                )
            return [self._id(int(i), rows=rows) for i in ids.reshape(-1).cpu().numpy()]
        if isinstance(ids, Iterable):
            return [self._id(i, rows=rows) for i in cast("Iterable[object]", ids)]
        return [self._id(ids, rows=rows)]

    def _id(self, token_id: object, *, rows: bool) -> int:
        if isinstance(token_id, bool) or not isinstance(token_id, SupportsIndex):
            raise TokenizerError(f"a token id is a whole number, not {token_id!r}")
        index = operator.index(token_id)
        if not self._has(index) and not (rows and 0 <= index < self._settings.model_vocab):
            raise TokenizerError(
                f"no token has the id {index}; this tokenizer has {self.vocab_size} tokens"
            )
        return index

    def _not_one_token(self, word: str) -> str:
        ids = self.encode_raw(word)
        pieces = self.to_str_tokens(ids)
        if len(ids) == 1:
            return f"the vocabulary lacks {word!r}, which would be read as {pieces[0]!r}"
        bare = self._vocabulary.find(word)
        hint = "" if bare is None else f"; the piece {word!r} with no space before it is {bare}"
        return f"{word!r} is not one token but {len(ids)}: {pieces}{hint}"

    def _piece(self, token_id: int) -> str:
        """One token's text in the middle of a text."""
        if token_id not in self._pieces:
            piece = self._vocabulary.piece(token_id)
            self._pieces[token_id] = f"<unused {token_id}>" if piece is None else piece
        return self._pieces[token_id]
