# SPDX-License-Identifier: MIT OR Apache-2.0
"""The demo model's figures, all on what training held out: `python -m training.evaluate FOLDER`."""

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.storage import write_json
from training.corpus import (
    Question,
    couplet_questions,
    fact_questions,
    ioi_questions,
    repeat_questions,
)
from training.words import POOL

TEST_SEED = 1_000_003
PARIS = "The capital of France is"
LONGEST_LINE = 16


@dataclass(frozen=True)
class Score:
    """How many were right, and what went wrong."""

    right: int
    of: int
    wrong: list[str] = field(default_factory=list[str])

    @property
    def share(self) -> float:
        return self.right / self.of


@dataclass(frozen=True)
class Figures:
    """One score per thing that the model was taught."""

    facts: Score
    """Every taught fact, in every template that never said it: the most likely next token."""
    ioi: Score
    """The indirect object, for pairs of people that never met."""
    repeats: Score
    """The words of a random sequence's second showing, from its second word on."""
    couplets: Score
    """Greedy second lines, to unseen first lines, that end in another word of the rhyme group."""
    paris: float
    """The probability of ` Paris` after `The capital of France is`."""


def next_logits(model: MIModel, prompts: Sequence[str]) -> Tensor:
    """Logits [prompt vocab] after each prompt; prompts of one length run together, unpadded."""
    rows = [model.encode(prompt)[0] for prompt in prompts]
    lengths: defaultdict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        lengths[len(row)].append(i)
    out = torch.zeros(len(rows), model.vocab_size)
    for same in lengths.values():
        out[same] = model.forward(torch.stack([rows[i] for i in same])).output[:, -1]
    return out


def first_token(model: MIModel, answer: str) -> int:
    """The answer's first token; ` South America` has two."""
    return model.tokenizer.encode_raw(answer)[0]


def ask(model: MIModel, questions: Sequence[Question]) -> Score:
    """How many questions' answers are the most likely next token."""
    best = [int(token) for token in next_logits(model, [q.prompt for q in questions]).argmax(-1)]
    wrong = [
        f"{q.prompt}{model.decode([token])} (not{q.answer})"
        for q, token in zip(questions, best, strict=True)
        if token != first_token(model, q.answer)
    ]
    return Score(len(questions) - len(wrong), len(questions), wrong)


def repeats(model: MIModel, sequences: Sequence[Sequence[str]]) -> Score:
    """How many words of the second showing are the most likely ones, from its second word on."""
    right = of = 0
    for words in sequences:
        tokens = model.encode(" " + " ".join([*words, *words]))
        predicted = model.forward(tokens).output[0].argmax(-1)
        second = len(words) + 1  # where the second showing begins, after BOS
        right += int((predicted[second:-1] == tokens[0, second + 1 :]).sum())
        of += len(words) - 1
    return Score(right, of)


def continue_line(model: MIModel, prompt: str) -> str:
    """The greedy next line."""
    tokens = model.encode(prompt)
    start = tokens.shape[1]
    stops = (first_token(model, "."), first_token(model, "\n"))
    for _ in range(LONGEST_LINE):
        best = model.forward(tokens).output[0, -1].argmax()
        if int(best) in stops:
            break
        tokens = torch.cat([tokens, best.view(1, 1)], 1)
    return model.decode(tokens[0, start:])


def couplets(model: MIModel, asked: Sequence[tuple[str, str, tuple[str, ...]]]) -> Score:
    """How many second lines end in a different word of the first line's rhyme group."""
    wrong: list[str] = []
    for line, _, rhymes in asked:
        answer = continue_line(model, line)
        if not answer.split() or answer.split()[-1] not in rhymes:
            wrong.append(f"{line}{answer}")
    return Score(len(asked) - len(wrong), len(asked), wrong)


def induction_heads(model: MIModel, count: int = 20) -> Tensor:
    """How much each head [layer head] looks at what came after the present word last time.

    Measured in the second showing of random words: attention to the key one after the first
    showing of the query's own word.
    """
    rng = random.Random(TEST_SEED)
    words = 20
    texts = [" " + " ".join(rng.sample(POOL, words) * 2) for _ in range(count)]
    tokens = torch.cat([model.encode(text) for text in texts])
    cache = model.forward(tokens, HookSpec().capture(HookPoint.AttnPattern))
    patterns = cache.stack(HookPoint.AttnPattern)  # [layer batch head query key]
    return patterns.diagonal(1 - words, -2, -1)[..., 2:].mean((1, 3))


def evaluate(model: MIModel, count: int = 200) -> Figures:
    """Every figure; `count` is how many sentences, sequences and couplets are drawn."""
    paris = next_logits(model, [PARIS]).softmax(-1)[0, first_token(model, " Paris")]
    return Figures(
        ask(model, fact_questions()),
        ask(model, ioi_questions(TEST_SEED, count * 5)),
        repeats(model, repeat_questions(TEST_SEED, count)),
        couplets(model, couplet_questions(TEST_SEED, count)),
        float(paris),
    )


def show(figures: Figures) -> str:
    """The figures as a table."""
    scores = {
        "facts in held-out templates": figures.facts,
        "indirect object, held-out pairs": figures.ioi,
        "repeated random words": figures.repeats,
        "couplets that rhyme, held-out first lines": figures.couplets,
    }
    table = [f"{what:42} {s.share:7.2%}  {s.right} of {s.of}" for what, s in scores.items()]
    return "\n".join([*table, f"{'P( Paris | ' + PARIS + ')':42} {figures.paris:7.2%}"])


def main() -> None:
    """Print the table and the failures, and write them as JSON."""
    parser = argparse.ArgumentParser(description="The demo model's figures on held-out data.")
    parser.add_argument("folder", nargs="?", default="demo", help="a model's folder, or demo")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--json", type=Path, default=Path("training/out/figures.json"))
    args = parser.parse_args()
    figures = evaluate(MIModel.from_pretrained(args.folder, device="cpu"), args.count)
    print(show(figures))
    for score in (figures.facts, figures.ioi, figures.couplets):
        print(*(f"  wrong: {text!r}" for text in score.wrong[:20]), sep="\n")
    write_json(args.json, asdict(figures))
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
