# SPDX-License-Identifier: MIT OR Apache-2.0
"""Indirect objects: which heads say the name, where they take it from, and what they are worth.

After Wang et al. 2022, "Interpretability in the Wild".

python examples/indirect_object.py                 # the packaged demo model
python examples/indirect_object.py path/to/model   # yours
"""

import random
import sys

import torch

import torch_mi as mi
from torch_mi.analysis.ablation import ablate_together
from torch_mi.analysis.movers import Movers, find_movers
from torch_mi.sweeps.grid import Grid

NAMES = ("Mary", "John", "Alice", "Tom", "Sarah", "Paul", "Linda", "Mark", "Emma", "Jack")
SENTENCES = (
    "When {one} and {two} went to the store, {giver} gave a drink to",
    "After {one} and {two} went to the park, {giver} gave a kite to",
    "Then, {one} and {two} were at the school, and {giver} showed a book to",
    "As soon as {one} and {two} came to the beach, {giver} brought a ball to",
)
COUNT, MOVERS, DRAWS = 24, 7, 6
Sentence = tuple[str, str, str]
"""A prompt, the taker and the giver."""


def sentences(count: int, seed: int = 0) -> list[Sentence]:
    """Sentences about two people, who comes first being a coin toss."""
    dice, found = random.Random(seed), list[Sentence]()
    for _ in range(count):
        one, two = dice.sample(NAMES, 2)
        giver, taker = dice.choice([(one, two), (two, one)])
        prompt = dice.choice(SENTENCES).format(one=one, two=two, giver=giver)
        found.append((prompt, f" {taker}", f" {giver}"))
    return found


def without(model: mi.MIModel, found: Movers) -> Grid:
    """The right name's lead without the movers, and without as many other heads."""
    heads = [(i, j) for i in range(model.num_layers) for j in range(model.num_heads)]
    movers = [(layer, head) for layer, head, _ in found.best(MOVERS)]
    others, dice = [head for head in heads if head not in movers], random.Random(0)
    groups = {"movers": movers}
    groups |= {f"others {i}": dice.sample(others, MOVERS) for i in range(DRAWS)}
    lead = mi.logit_diff(found.targets, found.versus)
    return ablate_together(model, list(found.prompts), groups, metric=lead, progress=False)


def looked_at(model: mi.MIModel, sentence: Sentence, heads: list[tuple[int, int]]) -> list[str]:
    """The token that each head looks at from the end of a sentence, and its place."""
    prompt, _, _ = sentence
    cache = model.forward(prompt, mi.HookSpec().capture(mi.HookPoint.AttnPattern))
    tokens, found = model.to_str_tokens(prompt), list[str]()
    for layer, head in heads:
        row = cache[mi.HookPoint.AttnPattern(layer)][0, head, -1]
        found.append(f"L{layer}H{head} looks at{tokens[int(row.argmax())]} ({int(row.argmax())})")
    return found


def where_the_name_is(model: mi.MIModel, sentence: Sentence, new: str) -> Grid:
    """Where a stream brings the new taker's name back into the run with the old one."""
    old, taker, _ = sentence
    metric = mi.logit_diff(new, taker)
    clean = old.replace(taker, new, 1).replace(taker.strip(), new.strip(), 1)
    return mi.patch(model, clean, old, at="resid_pre", metric=metric, progress=False)


def main(model: mi.MIModel) -> tuple[Movers, Grid, Grid]:
    """Find the movers, see where they look, follow the name, and take them out."""
    asked = sentences(COUNT)
    prompts, takers, givers = (list(part) for part in zip(*asked, strict=True))
    found = find_movers(model, prompts, target=takers, versus=givers)
    print("1. Which heads say the taker's name?\n")
    print(found)

    print("\n2. Where do they take it from?\n")
    movers = [(layer, head) for layer, head, _ in found.best(MOVERS)]
    print(asked[0][0])
    print("\n".join(looked_at(model, asked[0], movers)))
    known = {asked[0][1], asked[0][2]}
    new = next(f" {name}" for name in NAMES if f" {name}" not in known)
    carried = where_the_name_is(model, asked[0], new)
    print(f"\nThe same with{new} for{asked[0][1]}: where the stream brings{new} back\n")
    print(carried)

    print("\n3. What are they worth?\n")
    cut = without(model, found)
    movers_left, others_left = cut.values[0], cut.values[1:]
    print(f"the right name leads by {cut.baseline:.2f} logits")
    print(f"without the {MOVERS} movers by {float(movers_left):.2f}")
    print(f"without {MOVERS} other heads by {_spread(others_left)}")
    return found, carried, cut


def _spread(values: torch.Tensor) -> str:
    low, middle, high = (float(x) for x in (values.min(), values.median(), values.max()))
    return f"{middle:.2f} (from {low:.2f} to {high:.2f} in {len(values)} draws)"


if __name__ == "__main__":
    main(mi.MIModel.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "demo"))
