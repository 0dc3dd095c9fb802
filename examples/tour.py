# SPDX-License-Identifier: MIT OR Apache-2.0
"""A tour of a model: how its answers form, what brings them about, what carries an answer.

python examples/tour.py                 # the packaged demo model
python examples/tour.py demo-rwkv       # the packaged recurrent one
python examples/tour.py path/to/model   # yours
"""

import sys

import torch_mi as mi
from torch_mi.analysis.tour import tour
from torch_mi.analysis.tour_attention import AttentionTour, knockout
from torch_mi.analysis.tour_states import StateTour, unwritten
from torch_mi.analysis.tour_steps import Tour, read_pairs


def main(model: mi.MIModel) -> Tour:
    """Take the tour, then look again at its steps one by one."""
    seen = tour(model)
    pair = seen.pair
    print(model)

    print("\n1. The layers settle on an answer")
    print(mi.logit_lens(model, pair.clean, target=pair.answer.token_id))

    match seen:
        case AttentionTour():
            attention(model, seen)
        case StateTour():
            states(model, seen)

    print("\n4. With one activation of another run")
    print(seen.patched)

    print("\nThe pairs of prompts that this model tells apart:")
    for known in read_pairs(model, [(pair.clean, pair.corrupted)]):
        print(f"{known.clean} → {known.answer.token!r}; {known.corrupted} → {known.other.token!r}")
    return seen


def attention(model: mi.MIModel, seen: AttentionTour) -> None:
    """Where a head looks, and what an attention edge is worth."""
    print("\n2. A head that looks for something")
    print(f"layer {seen.head.layer}, head {seen.head.head}: {seen.head.kind} {seen.head.score:.2f}")

    print("\n3. Without one attention edge")
    without(model, seen, knockout(seen.cut.layer, seen.cut.pos))


def states(model: mi.MIModel, seen: StateTour) -> None:
    """What is read from a state, and what one token's write to it is worth."""
    print("\n2. What the last token reads from a state")
    row = zip(seen.reading.weights.tokens, seen.reading.row, strict=True)
    print(f"layer {seen.reading.layer}, head {seen.reading.head}:")
    print(", ".join(f"{token} {weight:+.1f}" for token, weight in row))

    print("\n3. Without one write to a state")
    without(model, seen, unwritten(seen.cut.layer, seen.cut.pos))


def without(model: mi.MIModel, seen: Tour, spec: mi.HookSpec) -> None:
    """The answer with a path cut."""
    answer = seen.pair.answer
    print(spec)
    after = model.forward(seen.pair.clean, spec).output[0, -1].softmax(-1)[answer.token_id]
    print(f"P({answer.token!r}) falls from {seen.cut.before:.3f} to {after:.3f}")


if __name__ == "__main__":
    main(mi.MIModel.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "demo"))
