# SPDX-License-Identifier: MIT OR Apache-2.0
"""The demo model's figures, all on what training held out: `python -m training.evaluate FOLDER`."""

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from torch_mi.errors import MIError
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

TEST_SEED = 2_000_003
"""Draws the sentences of the published figures; training watches others."""
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


def by_length(model: MIModel, prompts: Sequence[str]) -> Iterator[tuple[list[int], Tensor]]:
    """Prompts of one length together, so that none is padded: their places, and their tokens."""
    rows = [model.encode(prompt)[0] for prompt in prompts]
    for length in sorted({len(row) for row in rows}):
        places = [i for i, row in enumerate(rows) if len(row) == length]
        yield places, torch.stack([rows[i] for i in places])


def next_logits(model: MIModel, prompts: Sequence[str]) -> Tensor:
    """Logits [prompt vocab] after each prompt."""
    out = torch.zeros(len(prompts), model.vocab_size)
    for places, tokens in by_length(model, prompts):
        out[places] = model.forward(tokens).output[:, -1]
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
    for _, tokens in by_length(model, [" " + " ".join([*s, *s]) for s in sequences]):
        predicted = model.forward(tokens).output.argmax(-1)
        second = (tokens.shape[1] - 1) // 2 + 1  # where the second showing begins, after BOS
        target = tokens[:, second + 1 :]
        right += int((predicted[:, second:-1] == target).sum())
        of += target.numel()
    return Score(right, of)


def next_lines(model: MIModel, prompts: Sequence[str]) -> list[str]:
    """The greedy next line after each prompt, without its full stop."""
    lines = [""] * len(prompts)
    for places, tokens in by_length(model, prompts):
        longer = tokens
        for _ in range(LONGEST_LINE):
            best = model.forward(longer).output[:, -1].argmax(-1, keepdim=True)
            longer = torch.cat([longer, best], 1)
        for place, row in zip(places, longer[:, tokens.shape[1] :], strict=True):
            lines[place] = model.decode(row).partition(".")[0].partition("\n")[0]
    return lines


def couplets(model: MIModel, asked: Sequence[tuple[str, str, tuple[str, ...]]]) -> Score:
    """How many second lines end in a different word of the first line's rhyme group."""
    lines = next_lines(model, [first for first, _, _ in asked])
    wrong = [
        first + line
        for (first, _, rhymes), line in zip(asked, lines, strict=True)
        if not line.split() or line.split()[-1] not in rhymes
    ]
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


def evaluate(model: MIModel, count: int = 200, seed: int = TEST_SEED) -> Figures:
    """Every figure; `count` sequences and couplets are drawn, and five times as many names."""
    paris = next_logits(model, [PARIS]).softmax(-1)[0, first_token(model, " Paris")]
    return Figures(
        ask(model, fact_questions()),
        ask(model, ioi_questions(seed, count * 5)),
        repeats(model, repeat_questions(seed, count)),
        couplets(model, couplet_questions(seed, count)),
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
    try:
        model = MIModel.from_pretrained(args.folder, device="cpu", local_files_only=True)
    except MIError as error:
        raise SystemExit(f"error: {error}") from error
    figures = evaluate(model, args.count)
    print(show(figures))
    for score in (figures.facts, figures.ioi, figures.couplets):
        print(*(f"  wrong: {text!r}" for text in score.wrong[:20]), sep="\n")
    write_json(args.json, asdict(figures))
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
