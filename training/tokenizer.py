# SPDX-License-Identifier: MIT OR Apache-2.0
"""The demo model's tokenizer: byte-level BPE in which every word of the corpus is one token.

Whole words are looked up first (`ignore_merges`, as in Llama 3); the merges serve words that the
corpus does not have.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from torch_mi.storage import write_json, write_text
from training.corpus import documents
from training.words import NAMES, POOL

BOS, EOS = SPECIAL = ("<|bos|>", "<|eos|>")
SAMPLE = 60_000
"""Documents read; enough that every word has been met in every place where it can stand."""
MERGES = 128


def corpus_pieces(seed: int) -> list[str]:
    """Every word, number and mark of the corpus, with its leading space if it has one."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    named = "".join(f" {word}" for word in (*POOL, *NAMES))
    found: set[str] = {piece for piece, _ in split(named)}
    for document in islice(documents(seed), SAMPLE):
        found.update(piece for piece, _ in split(document.text))
    return sorted(found)


def build(seed: int = 0) -> Tokenizer:
    """The tokenizer for the corpus of `seed`."""
    texts = [document.text for document in islice(documents(seed), SAMPLE)]
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2 + len(alphabet) + MERGES,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    base.train_from_iterator(texts, trainer)
    learned = json.loads(base.to_str())["model"]
    vocab: dict[str, int] = learned["vocab"]
    for piece in corpus_pieces(seed):
        vocab.setdefault(piece, len(vocab))
    merges = [(left, right) for left, right in learned["merges"]]
    return finish(Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True)))


def finish(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with its splitter, decoder, special tokens and leading BOS."""
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, SPECIAL.index(BOS))],
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 256,
        },
    )


def main() -> None:
    """Build the tokenizer and save it."""
    parser = argparse.ArgumentParser(description="Build the demo model's tokenizer.")
    parser.add_argument("--out", type=Path, default=Path("src/torch_mi/demo"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = build(args.seed)
    save(tokenizer, args.out)
    print(f"{tokenizer.get_vocab_size()} tokens, saved in {args.out}")


if __name__ == "__main__":
    main()
