# SPDX-License-Identifier: MIT OR Apache-2.0
"""The vocabulary of models whose token ids are byte values."""

from torch_mi.tokens.fast import FastVocabulary
from torch_mi.tokens.pieces import BYTE_ALPHABET
from torch_mi.tokens.settings import Settings


def byte_vocabulary() -> FastVocabulary:
    """256 tokens: byte b of a text's UTF-8 is token b. None is special; nothing is added."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415 - late

    backend = Tokenizer(models.BPE(BYTE_ALPHABET, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return FastVocabulary(backend, Settings())
