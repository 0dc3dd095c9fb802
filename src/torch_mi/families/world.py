# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the World models call their vocabulary, and where it is to be had."""

from collections.abc import Mapping

VOCABULARIES = "rwkv_vocab*.txt"
"""The files that hold such a vocabulary."""

VOCABULARY = "rwkv_vocab_v20230424.txt"
"""The one that nearly all World models share."""

VOCABULARY_AT = "RWKV/v5-Eagle-7B-HF"
"""A Hub repository that has it; those of the authors' own `.pth` files have none."""

END_OF_TEXT = "<|rwkv_tokenizer_end_of_text|>"
"""What token 0 is called where a folder does not say."""

ROWS = 65536
"""How many tokens a World model has rows for; the last six stand for nothing."""

NOTE = "tokenizer_note.json"
"""Where a folder says that token ids are byte values: `{"type": "bytes"}`."""

BYTES = 256
"""How many tokens a model has whose token ids are byte values."""


def vocabulary_advice(config: Mapping[str, object]) -> str:
    """What to put into the folder of a model of this config that has no tokenizer, or nothing."""
    if not str(config.get("model_type")).startswith("rwkv"):
        return ""
    if config.get("vocab_size") == ROWS:
        return (
            f"; this is a World model: put {VOCABULARY} there, from {VOCABULARY_AT} on the Hub "
            "or the rwkv package"
        )
    if config.get("vocab_size") == BYTES:
        return f'; if its token ids are byte values, {NOTE} with {{"type": "bytes"}} says so'
    return ""
