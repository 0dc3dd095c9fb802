# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tokenizer that a GGUF file describes: a vocabulary, merges or scores, and how text is cut."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from torch_mi.errors import TokenizerError
from torch_mi.families.gguf_text import (
    BY_PLACE,
    BYTE_LEVEL,
    CUTS,
    NORMALISED,
    SENTENCE_PIECE,
    WHOLE_FIRST,
)
from torch_mi.tokens.settings import Settings
from torch_mi.tokens.tokenizer import MITokenizer

if TYPE_CHECKING:
    import tokenizers

UNKNOWN, CONTROL, ADDED = 2, 3, 4
"""llama.cpp's kinds of token that are not ordinary pieces."""

SPACE = "▁"
"""What SentencePiece writes for a space."""


def read_tokenizer(metadata: Mapping[str, object]) -> MITokenizer:
    """The tokenizer in a GGUF file's metadata."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind == BYTE_LEVEL:
        made = _byte_level(metadata)
    elif kind == SENTENCE_PIECE:
        made = _sentence_piece(metadata)
    elif kind is None:
        raise TokenizerError("this GGUF file has no tokenizer")
    else:
        raise TokenizerError(
            f"this GGUF file has a tokenizer of kind {kind!r}; {BYTE_LEVEL!r} (byte-level BPE) and "
            f"{SENTENCE_PIECE!r} (SentencePiece BPE) can be read: give the original model's folder"
        )
    _add_special(made, metadata)
    return MITokenizer(made, _settings(metadata))


def _strings(metadata: Mapping[str, object], key: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(
        isinstance(v, str) for v in cast("list[object]", value)
    ):
        raise TokenizerError(f"this GGUF file has no tokenizer.ggml.{key}")
    return cast("list[str]", value)


def _flag(metadata: Mapping[str, object], key: str, default: bool) -> bool:  # noqa: FBT001
    value = metadata.get(f"tokenizer.ggml.{key}")
    return value if isinstance(value, bool) else default


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    """Token -> id; the first of any that are spelt alike."""
    table = dict[str, int]()
    for i, token in enumerate(tokens):
        table.setdefault(token, i)
    return table


def _byte_level(metadata: Mapping[str, object]) -> "tokenizers.Tokenizer":
    """Byte-level BPE: text is cut by patterns, and bytes merged by rank."""
    from tokenizers import (  # noqa: PLC0415 - tokenizers loads late
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in CUTS:
        raise TokenizerError(
            f"this GGUF file cuts text in a way called {pre!r}, which is not known here; known are "
            f"{', '.join(CUTS)}: give the original model's folder instead"
        )
    name = cast("str", pre)
    table = _vocabulary(_strings(metadata, "tokens"))
    merges = [_pair(merge) for merge in _strings(metadata, "merges")]
    _check_merges(table, merges)
    made = Tokenizer(models.BPE(table, merges, ignore_merges=name in WHOLE_FIRST))
    if name in NORMALISED:
        made.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(cut), "isolated") for cut in CUTS[name]]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, level])
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    return made


def _pair(merge: str) -> tuple[str, str]:
    """The two sides of a merge; the first of them is never empty."""
    cut = merge.find(" ", 1)
    return merge[:cut], merge[cut + 1 :]


def _check_merges(table: Mapping[str, int], merges: list[tuple[str, str]]) -> None:
    """The tokenizers library comes to a bad end over merges of tokens that are not there."""
    for left, right in merges:
        if left not in table or right not in table or left + right not in table:
            raise TokenizerError(
                f"this GGUF file merges {left!r} with {right!r}, and not all of that are tokens"
            )


def _sentence_piece(metadata: Mapping[str, object]) -> "tokenizers.Tokenizer":
    """SentencePiece BPE: pieces are merged by score, and what is left over is spelt in bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers  # noqa: PLC0415 - late

    tokens = [_escaped(token) for token in _strings(metadata, "tokens")]
    table = _vocabulary(tokens)
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise TokenizerError(f"this GGUF file has an unknown token {unknown!r} that is not there")
    model = models.BPE(
        table,
        _merges(table, _order(metadata, len(tokens))),
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    made = Tokenizer(model)
    spaced = _flag(metadata, "add_space_prefix", default=True)
    steps = [normalizers.Prepend(SPACE)] if spaced else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    ends = [decoders.Strip(" ", 1, 0)] if spaced else []
    spell = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*spell, *ends])
    return made


def _escaped(token: str) -> str:
    """A run of spaces as SentencePiece writes it: some files hold it plain."""
    return token if token.strip(" ") or not token else SPACE * len(token)


def _order(metadata: Mapping[str, object], count: int) -> list[float]:
    """What is merged first, per token: by score, except where the place in the list tells."""
    if str(metadata.get("general.architecture")).startswith(BY_PLACE):
        return [-float(i) for i in range(count)]
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(cast("list[float]", scores)) != count:
        raise TokenizerError("this GGUF file has no tokenizer.ggml.scores for its tokens")
    return cast("list[float]", scores)


def _merges(table: Mapping[str, int], order: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to put two tokens together into a third, best first."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, i in table.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in table and right in table:
                found.append((-order[i], table[left], table[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_special(made: "tokenizers.Tokenizer", metadata: Mapping[str, object]) -> None:
    """Mark the tokens that are matched whole in a text, and those that stand for structure."""
    from tokenizers import AddedToken  # noqa: PLC0415 - tokenizers loads late

    given = metadata.get("tokenizer.ggml.token_type")
    kinds = cast("list[int]", given if isinstance(given, list) else [])
    listed = list(zip(_strings(metadata, "tokens"), kinds, strict=False))
    special = [token for token, kind in listed if kind == CONTROL and token]
    plain = [token for token, kind in listed if kind == ADDED and token]
    if metadata.get("tokenizer.ggml.model") == SENTENCE_PIECE:  # runs of spaces are pieces there
        plain = [token for token in plain if token.strip(" ")]
    marked = [AddedToken(token, normalized=False, special=True) for token in special]
    made.add_special_tokens(marked)  # pyright: ignore[reportUnknownMemberType]
    kept = [AddedToken(token, normalized=False) for token in plain]
    made.add_tokens(kept)  # pyright: ignore[reportUnknownMemberType]


def _settings(metadata: Mapping[str, object]) -> Settings:
    """What the file says of its special tokens."""
    tokens = _strings(metadata, "tokens")
    named = dict[str, str]()
    for name, key in SPECIAL.items():
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(token, int):
            if not 0 <= token < len(tokens):
                raise TokenizerError(
                    f"tokenizer.ggml.{key}_token_id is {token}; there are {len(tokens)} tokens"
                )
            named[name] = tokens[token]
    ends = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    begins = metadata.get("tokenizer.ggml.model") == SENTENCE_PIECE
    begins = begins or metadata.get("tokenizer.ggml.pre") in WHOLE_FIRST
    template = metadata.get("tokenizer.chat_template")
    return Settings(
        named=named,
        add_bos=_flag(metadata, "add_bos_token", default=begins),
        bos_id=bos if isinstance(bos, int) else None,
        eos_ids=tuple(end for end in ends if isinstance(end, int)),
        model_vocab=len(tokens),
        chat_template=template if isinstance(template, str) else None,
    )


SPECIAL = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "mask_token": "mask",
}
"""Names that a tokenizer's configuration uses -> those of the metadata (spelt as it has them)."""
