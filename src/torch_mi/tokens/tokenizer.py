# SPDX-License-Identifier: MIT OR Apache-2.0
"""Text to token ids and back, as the model was trained to read it."""

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, SupportsIndex, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_mi.errors import TokenizerError
from torch_mi.storage import write_json, write_text
from torch_mi.tokens.pieces import LOST, align, readable_bytes, token_bytes
from torch_mi.tokens.positions import EncodingWithOffsets
from torch_mi.tokens.settings import (
    NAMED,
    Settings,
    default_template,
    read_settings,
    settings_to_json,
)

if TYPE_CHECKING:
    import tokenizers

Ids = SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer] | Tensor
"""Token ids as people have them: one, a list, or an array or tensor of none or one dimension."""

LARGEST = 2**32
"""Past the largest id that the tokenizers library can hold."""

CONVERT = "transformers makes one: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"


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

    def __init__(self, backend: "tokenizers.Tokenizer", settings: Settings | None = None) -> None:
        self._backend = backend
        self._settings = settings or Settings()
        backend.no_truncation()
        backend.no_padding()
        _keep_spaces(backend)
        _add_declared(backend, self._settings)
        self._prepare_bos()
        named = self._settings.named
        known = {name: backend.token_to_id(text) for name, text in named.items()}
        eos = known.get("eos_token")
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        listed = (*(() if eos is None else (eos,)), *self._settings.eos_ids)
        self.eos_ids = tuple(dict.fromkeys(i for i in listed if self._has(i)))
        pad = known.get("pad_token", self._settings.pad_id)
        self.pad_id = pad if pad is not None and self._has(pad) else None
        added = backend.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        self._special = {i for i, token in added.items() if token.special}
        self._special.update(i for i in known.values() if i is not None)
        self._pieces: dict[int, str] = {}
        self._context = self._backend.encode("a", add_special_tokens=False).ids[-1:]

    @classmethod
    def from_folder(cls, folder: str | Path) -> "MITokenizer":
        """The tokenizer in a model folder's `tokenizer.json`."""
        from tokenizers import Tokenizer  # noqa: PLC0415

        folder = Path(folder).expanduser()
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(_missing(folder))
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as cause:  # tokenizers raises nothing narrower
            raise TokenizerError(f"failed to read {path}: {cause}") from cause
        return cls(backend, read_settings(folder))

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
        write_text(Path(folder) / "tokenizer.json", self._backend.to_str(pretty=True))
        write_json(Path(folder) / "tokenizer_config.json", settings_to_json(self._settings))

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as the model expects it: with BOS and its like, where it has them."""
        return self._encoding(text, special=True).ids

    def encode_raw(self, text: str) -> list[int]:
        """The ids of `text` and nothing else."""
        return self._encoding(text, special=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for several texts."""
        if isinstance(texts, str):
            raise TokenizerError("encode_batch takes a list of texts; encode takes one text")
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, text: str) -> EncodingWithOffsets:
        """`encode`, and where each token lies in `text`; added tokens lie at (0, 0)."""
        return _with_offsets(self._encoding(text, special=True))

    def encode_raw_with_offsets(self, text: str) -> EncodingWithOffsets:
        """`encode_raw`, and where each token lies in `text`."""
        return _with_offsets(self._encoding(text, special=False))

    def decode(self, ids: Ids, *, skip_special: bool = False) -> str:
        """The text of token ids, special tokens included unless they are to be skipped."""
        kept = [i for i in self._ids(ids) if not (skip_special and i in self._special)]
        return self._backend.decode(kept, skip_special_tokens=False)

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
        spans = align(listed, self.decode)
        offsets = [
            (a, a if i in self._special else b) for i, (a, b) in zip(listed, spans, strict=True)
        ]
        tokens = [cast("str", self._backend.id_to_token(i)) for i in listed]
        return EncodingWithOffsets(tuple(listed), tuple(tokens), tuple(offsets))

    def is_special(self, token_id: SupportsIndex) -> bool:
        """Whether a token stands for structure (BOS, a turn of a chat), not for text."""
        return self._ids(token_id, rows=True)[0] in self._special

    def token_to_id(self, token: str) -> int | None:
        """The id of a token written as in the vocabulary (`Ġthe`, `▁the`), or None."""
        return self._backend.token_to_id(token)

    def find_token_id(self, word: str) -> int:
        """The one token that `word` is: with a space before it if there is such a token."""
        self._check(word)
        if not word:
            raise TokenizerError("an empty word is no token")
        spaced = word.startswith(" ")
        for candidate in (word, word[1:]) if spaced else (f" {word}", word):
            ids = self.encode_raw(candidate) if candidate else []
            if len(ids) != 1 or self._is_unknown(ids[0], candidate):
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
        name = self._settings.named.get("bos_token")
        declared = self._settings.bos_id if name is None else self._backend.token_to_id(name)
        first = self._backend.encode("", add_special_tokens=True).ids[:1]
        if first and declared is None:
            declared = first[0]
        self.bos_id = declared if declared is not None and self._has(declared) else None
        if self._settings.add_bos and self.bos_id is not None and self.bos_id not in first:
            _prepend(
                self._backend, cast("str", self._backend.id_to_token(self.bos_id)), self.bos_id
            )

    def _has(self, token_id: int) -> bool:
        return 0 <= token_id < LARGEST and self._backend.id_to_token(token_id) is not None

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

    def _encoding(self, text: str, *, special: bool) -> "tokenizers.Encoding":
        checked = self._check(text)
        try:
            return self._backend.encode(checked, add_special_tokens=special)
        except Exception as cause:  # tokenizers raises nothing narrower
            raise TokenizerError(f"failed to encode {text[:40]!r}: {cause}") from cause

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

    def _is_unknown(self, token_id: int, word: str) -> bool:
        """Whether a token only stands for words that the vocabulary lacks."""
        from tokenizers.models import BPE, WordLevel, WordPiece  # noqa: PLC0415

        model = self._backend.model
        unknown = self._settings.named.get("unk_token")
        if isinstance(model, BPE | WordLevel | WordPiece):
            unknown = model.unk_token or unknown
        return unknown == self._backend.id_to_token(token_id) and word.strip() != unknown

    def _not_one_token(self, word: str) -> str:
        ids = self.encode_raw(word)
        pieces = self.to_str_tokens(ids)
        if len(ids) == 1:
            return f"the vocabulary lacks {word!r}, which would be read as {pieces[0]!r}"
        bare = self.token_to_id(word)
        hint = "" if bare is None else f"; the piece {word!r} with no space before it is {bare}"
        return f"{word!r} is not one token but {len(ids)}: {pieces}{hint}"

    def _piece(self, token_id: int) -> str:
        """One token's text in the middle of a text."""
        if token_id not in self._pieces:
            self._pieces[token_id] = self._read(token_id)
        return self._pieces[token_id]

    def _read(self, token_id: int) -> str:
        token = self._backend.id_to_token(token_id)
        if token is None:
            return f"<unused {token_id}>"
        if token_id in self._added:
            return self._added[token_id]
        if self._backend.decoder is None:
            return token
        before = self._backend.decode(self._context, skip_special_tokens=False)
        both = self._backend.decode([*self._context, token_id], skip_special_tokens=False)
        text = both.removeprefix(before)
        raw = token_bytes(token) if LOST in text else None
        return text if raw is None else readable_bytes(raw)


def _with_offsets(encoding: "tokenizers.Encoding") -> EncodingWithOffsets:
    return EncodingWithOffsets(tuple(encoding.ids), tuple(encoding.tokens), tuple(encoding.offsets))


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


def _prepend(backend: "tokenizers.Tokenizer", token: str, token_id: int) -> None:
    """Put one token before every text, after what the post-processor does already."""
    from tokenizers import processors  # noqa: PLC0415

    first = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, token_id)]
    )
    steps = backend.post_processor
    backend.post_processor = first if steps is None else processors.Sequence([steps, first])


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


def _missing(folder: Path) -> str:
    """Why there is no tokenizer in a folder, and what to do."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    names = sorted(path.name for path in folder.iterdir())
    for older in ("tokenizer.model", "vocab.json"):
        if older in names:
            return f"{folder} has {older} but no tokenizer.json, which is needed; {CONVERT}"
    return f"{folder} has no tokenizer.json; it holds {', '.join(names[:12]) or 'nothing'}"
