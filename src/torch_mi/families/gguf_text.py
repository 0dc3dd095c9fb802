# SPDX-License-Identifier: MIT OR Apache-2.0
"""What GGUF calls each tokenizer, and how each cuts text before merging."""

from collections.abc import Mapping

BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"
"""`tokenizer.ggml.model`: byte-level BPE with merges, SentencePiece BPE with scores."""

BY_PLACE = "gemma"
"""What begins the names of architectures whose scores do not say which piece is merged first."""

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CASELESS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CAPITALS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FALCON_MARKS = r"[\p{P}\$\+<=>\^~\|`]+"

CUTS: Mapping[str, tuple[str, ...]] = {
    "gpt-2": (WORDS,),
    "phi-2": (WORDS,),
    "mpt": (WORDS,),
    "olmo": (WORDS,),
    "exaone4": (WORDS,),
    "starcoder": (r"\p{N}", WORDS),
    "refact": (r"\p{N}", WORDS),
    "command-r": (r"\p{N}", WORDS),
    "smollm": (r"\p{N}", WORDS),
    "exaone": (r"\p{N}", WORDS),
    "llama3": (CASELESS % "1,3",),
    "llama-v3": (CASELESS % "1,3",),
    "llama-bpe": (CASELESS % "1,3",),
    "falcon3": (CASELESS % "1,3",),
    "dbrx": (CASELESS % "1,3",),
    "smaug-bpe": (CASELESS % "1,3",),
    "qwen2": (CASELESS % "1",),
    "deepseek-r1-qwen": (CASELESS % "1",),
    "megrez": (CASELESS % "1",),
    "stablelm2": (CASELESS % "1",),
    "tekken": (CAPITALS % ("", "", ""),),
    "gpt-4o": (CAPITALS % (SUFFIX, SUFFIX, "{1,3}"),),
    "llama4": (CAPITALS % (SUFFIX, SUFFIX, "{1,3}"),),
    "deepseek-v3": (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK),
    "falcon": (FALCON_MARKS, WORDS, "[0-9][0-9][0-9]"),
    "bloom": (" ?[^(\\s|.,!?…。，、।۔،)]+",),
}
"""How text is cut before merging, by `tokenizer.ggml.pre`; each pattern cuts what the last left."""

WHOLE_FIRST = {"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"}
"""Where a piece that is a token is never merged together; these begin a text with BOS too."""

NORMALISED = {"qwen2", "deepseek-r1-qwen", "megrez", "olmo"}
"""Tokenizers that compose characters (NFC) first, which no GGUF file says."""
