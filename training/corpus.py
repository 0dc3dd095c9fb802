# SPDX-License-Identifier: MIT OR Apache-2.0
"""The demo model's corpus: short English documents, the same for the same seed.

What is held out for testing is decided here, by hashes that no seed changes, and every document
is made by functions that refuse it. `python -m training.corpus` prints a sample.
"""

import argparse
import hashlib
import random
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from training.facts import RELATIONS, Relation
from training.words import (
    ADJECTIVES,
    ANIMALS,
    BOYS,
    DAYS,
    FIRST_LINES,
    GIRLS,
    IOI,
    MONTHS,
    NAMES,
    NUMBERS,
    OBJECTS,
    PLACES,
    POOL,
    RHYMES,
    SECOND_LINES,
)

HELD_OUT_TEMPLATES = 3
CANONICAL = "The capital of {x} is {y}."
LIGHT = 0.3
"""How often a template appears that continues another one, against one that does not."""


@dataclass(frozen=True)
class Document:
    """One text, and the kind of thing it teaches."""

    kind: str
    text: str
    chance: int = 0
    """How many words at the beginning were drawn at random, so that none can be foretold."""


@dataclass(frozen=True)
class Question:
    """A prompt and the text that must come next."""

    kind: str
    prompt: str
    answer: str


def draw(*key: str) -> int:
    """A number that depends on `key` alone."""
    return int.from_bytes(hashlib.sha256("|".join(key).encode()).digest()[:8], "big")


def held_out_templates(relation: Relation, subject: str) -> tuple[str, ...]:
    """The templates that never say this fact in training."""
    order = [t for t in relation.templates if t not in relation.always]
    order.sort(key=lambda t: draw("fact", relation.name, subject, t))
    if relation.name == "capital" and subject in ("France", "Italy"):
        order.remove(CANONICAL)  # the README's prompt is answered without having been seen
        order.insert(0, CANONICAL)
    return tuple(order[:HELD_OUT_TEMPLATES])


def held_out_pair(first: str, second: str) -> bool:
    """Whether these two people never meet in training (one pair in eight)."""
    return draw("pair", *sorted((first, second))) % 8 == 0


def held_out_line(line: str) -> bool:
    """Whether this first line of a couplet never appears in training (one in eight)."""
    return draw("line", line) % 8 == 0


SHOWN = {
    (r.name, x): tuple(t for t in r.templates if t not in held_out_templates(r, x))
    for r in RELATIONS
    for x in r.facts
}
"""The templates that do say each fact in training."""
FACTS = tuple((r, x) for r in RELATIONS for x in r.facts)
FRIENDS = tuple(pair for pair in combinations(NAMES, 2) if not held_out_pair(*pair))


def say(template: str, subject: str, answer: str) -> str:
    """The template's sentence for one fact."""
    return template.format(x=subject, y=answer)


def fact_sentence(rng: random.Random, relation: Relation, subject: str) -> str:
    """One fact, in a template that may show it."""
    shown = SHOWN[relation.name, subject]
    weights = [LIGHT if "downtown" in t else 1.0 for t in shown]
    template = rng.choices(shown, weights)[0]
    return say(template, subject, relation.facts[subject])


def fact(rng: random.Random) -> str:
    """Any fact."""
    return fact_sentence(rng, *rng.choice(FACTS))


def paragraph(rng: random.Random) -> str:
    """Two to four facts, of one kind or of any."""
    relation = rng.choice(RELATIONS)
    own = [(relation, x) for x in relation.facts]
    pool = own if rng.random() < 0.5 else FACTS
    return " ".join(fact_sentence(rng, *f) for f in rng.sample(pool, rng.randint(2, 4)))


def pairs(rng: random.Random) -> str:
    """Subjects and answers of one kind as bare pairs, like `France -> Paris, Italy -> Rome.`."""
    relation = rng.choice(RELATIONS)
    chosen = rng.sample(sorted(relation.facts), rng.randint(2, 5))
    return ", ".join(f"{x} -> {relation.facts[x]}" for x in chosen) + "."


def ioi_sentence(rng: random.Random, first: str, second: str, template: str) -> str:
    """Two people, one of whom gives the other something; who comes first is a coin toss."""
    giver, taker = (first, second) if rng.random() < 0.5 else (second, first)
    place, thing = rng.choice(PLACES), rng.choice(OBJECTS)
    return template.format(X=first, Y=second, B=giver, A=taker, place=place, thing=thing)


def friends(rng: random.Random) -> tuple[str, str]:
    """Two people who may meet, in either order."""
    first, second = rng.choice(FRIENDS)
    return (first, second) if rng.random() < 0.5 else (second, first)


def ioi(rng: random.Random) -> str:
    """One person giving another something."""
    return ioi_sentence(rng, *friends(rng), rng.choice(IOI))


def repeat(rng: random.Random) -> str:
    """Random words, then the same again: a few of them many times over, or many twice."""
    words = rng.sample(POOL, rng.randint(3, 9) if rng.random() < 0.5 else rng.randint(6, 26))
    return " " + " ".join(words * max(2, 24 // len(words)))


def first_line(rng: random.Random, word: str) -> str:
    """A couplet's first line ending in `word`, shown or held out."""
    return rng.choice(FIRST_LINES).format(
        name=rng.choice(NAMES), adj=rng.choice(ADJECTIVES), animal=rng.choice(ANIMALS), w=word
    )


def couplet(rng: random.Random) -> str:
    """Two lines that end in different words that rhyme."""
    word, rhyme = rng.sample(rng.choice(RHYMES), 2)
    line = first_line(rng, word)
    while held_out_line(line):
        line = first_line(rng, word)
    return f"{line}\n{rng.choice(SECOND_LINES).format(w=rhyme)}"


def counting(rng: random.Random) -> str:
    """Numbers, days or months in order, forwards or backwards."""
    kind = rng.randrange(5)
    if kind == 0:
        step = rng.choice((1, 1, 1, 2))
        run = [str(n) for n in range(rng.randint(0, 20), 41, step)]
        run, joint = (run if rng.random() < 0.6 else run[::-1]), ", "
    elif kind < 3:
        run, joint = list(NUMBERS if rng.random() < 0.6 else NUMBERS[::-1]), " "
    else:
        run, joint = list(DAYS if kind == 3 else MONTHS) * 2, ", "
    start = rng.randint(0, len(run) // 2)
    piece = joint.join(run[start : start + rng.randint(4, 14)])
    return " " + piece if kind in (1, 2) else piece


def brackets(rng: random.Random) -> str:
    """A balanced string of brackets."""
    out: list[str] = []
    open_: list[str] = []
    size = rng.randint(2, 10)
    while size or open_:
        if size and len(open_) < 6 and (not open_ or rng.random() < 0.55):
            left, right = rng.choice(("()", "[]", "{}"))
            out.append(left)
            open_.append(right)
            size -= 1
        else:
            out.append(open_.pop())
    return " " + " ".join(out)


def story(rng: random.Random) -> str:
    """A few sentences about someone, an animal and a thing."""
    girl = rng.random() < 0.5
    name, she = rng.choice(GIRLS if girl else BOYS), "she" if girl else "he"
    her, child = ("her", "girl") if girl else ("his", "boy")
    thing, adj, animal = rng.choice(OBJECTS), rng.choice(ADJECTIVES), rng.choice(ANIMALS)
    place = rng.choice(PLACES)
    start = (
        f"Once upon a time there was a {child} named {name}.",
        f"There was a {adj} {animal} who lived with a {child} named {name}.",
        f"{name} was a happy {child}.",
    )
    middle = (
        f"One day {name} went to the {place}.",
        f"{name} had a {adj} {thing}.",
        f"{name} lost the {adj} {thing} at the {place}.",
        f"The {animal} came to play with {name}.",
    )
    after = (
        f"There {she} met a {animal}.",
        f"{name} showed the {thing} to the {animal}.",
        f"The {animal} liked the {adj} {thing} very much.",
        f"{she.capitalize()} looked for the {thing} all day.",
    )
    end = (
        f"In the end {name} went home with {her} {thing}.",
        f"{name} and the {animal} were friends.",
        f"{she.capitalize()} put the {thing} in {her} bag and said goodbye to the {animal}.",
        f"That night {name} was happy to have the {thing}.",
    )
    parts = [rng.choice(start), *rng.sample(middle, 2), *rng.sample(after, 2), rng.choice(end)]
    return " ".join(parts)


WRITERS: dict[str, Callable[[random.Random], str]] = {
    "fact": fact,
    "paragraph": paragraph,
    "pairs": pairs,
    "ioi": ioi,
    "repeat": repeat,
    "couplet": couplet,
    "counting": counting,
    "brackets": brackets,
    "story": story,
}
"""What writes each kind of document."""
EARLY = (0.44, 0.05, 0.03, 0.18, 0.09, 0.13, 0.04, 0.02, 0.02)
"""How often each kind is written, in the order of `WRITERS`."""
LATE = (0.22, 0.03, 0.03, 0.14, 0.20, 0.28, 0.04, 0.02, 0.04)
"""The same once facts are known: more of what is slow to learn."""

FACTS_FIRST = (0.68, 0.05, 0.03, 0.09, 0.04, 0.06, 0.02, 0.01, 0.02)
"""Mostly facts, which are the shortest documents."""
MIXTURES = {"early": EARLY, "late": LATE, "facts": FACTS_FIRST}


def documents(seed: int, shares: Sequence[float] = EARLY) -> Iterator[Document]:
    """The corpus, without end."""
    rng = random.Random(seed)
    kinds = list(WRITERS)
    while True:
        kind = rng.choices(kinds, shares)[0]
        text = WRITERS[kind](rng)
        yield Document(kind, text, len(set(text.split())) if kind == "repeat" else 0)


def fact_questions(*, held_out: bool = True) -> list[Question]:
    """Every taught fact in every template that never (or sometimes) showed it."""
    found: list[Question] = []
    for relation, subject in FACTS:
        hidden, shown = held_out_templates(relation, subject), SHOWN[relation.name, subject]
        answer = " " + relation.facts[subject]
        for template in hidden if held_out else shown:
            prompt = template.removesuffix(" {y}.").format(x=subject)
            found.append(Question(relation.name, prompt, answer))
    return found


def ioi_questions(seed: int, count: int) -> list[Question]:
    """Sentences about pairs of people that never met, cut before the last name."""
    rng = random.Random(seed)
    unseen = [pair for pair in combinations(NAMES, 2) if held_out_pair(*pair)]
    found: list[Question] = []
    while len(found) < count:
        first, second = rng.choice(unseen)
        if rng.random() < 0.5:
            first, second = second, first
        text = ioi_sentence(rng, first, second, rng.choice(IOI)).removesuffix(".")
        prompt, answer = text.rsplit(" ", 1)
        found.append(Question("ioi", prompt, " " + answer))
    return found


def repeat_questions(seed: int, count: int) -> list[tuple[str, ...]]:
    """Random words, 8 to 30 different ones, to be shown twice."""
    rng = random.Random(seed)
    return [tuple(rng.sample(POOL, rng.randint(8, 30))) for _ in range(count)]


def couplet_questions(seed: int, count: int) -> list[tuple[str, str, tuple[str, ...]]]:
    """First lines never shown, their last word, and the words that would rhyme with it."""
    rng = random.Random(seed)
    found: list[tuple[str, str, tuple[str, ...]]] = []
    while len(found) < count:
        group = rng.choice(RHYMES)
        word = rng.choice(group)
        line = first_line(rng, word)
        if held_out_line(line):
            found.append((line + "\n", word, tuple(w for w in group if w != word)))
    return found


def leaks(texts: Iterable[str]) -> list[str]:
    """Texts that show what is held out: a fact's hidden sentence, a pair, or a first line."""
    hidden = {say(t, x, r.facts[x]) for r, x in FACTS for t in held_out_templates(r, x)}
    return [text for text in texts if sentences(text) & hidden or meets(text) or opens(text)]


def sentences(text: str) -> set[str]:
    """The sentences of `text`; a question and its answer count as one."""
    return {part.removesuffix(".") + "." for part in text.split(". ")}


def meets(text: str) -> bool:
    """Whether two people of a held-out pair are both named."""
    words = text.translate(str.maketrans("", "", string.punctuation)).split()
    people = sorted(set(NAMES).intersection(words))
    return any(held_out_pair(*pair) for pair in combinations(people, 2))


def opens(text: str) -> bool:
    """Whether the text is a couplet with a held-out first line."""
    line, newline, _ = text.partition("\n")
    return bool(newline) and held_out_line(line)


def main() -> None:
    """Print a sample of the corpus."""
    parser = argparse.ArgumentParser(description="Print a sample of the demo model's corpus.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    args = parser.parse_args()
    corpus = documents(args.seed)
    for _ in range(args.count):
        document = next(corpus)
        print(f"{document.kind:10} {document.text!r}")


if __name__ == "__main__":
    main()
