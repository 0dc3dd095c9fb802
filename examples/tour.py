# SPDX-License-Identifier: MIT OR Apache-2.0
"""A tour of a model: how its answers form, which head looks for what, what carries an answer.

python examples/tour.py                 # the packaged demo model
python examples/tour.py path/to/model   # yours
"""

import sys

import torch_mi as mi
from torch_mi.analysis.tour import Tour, cut_edges, knockout, read_pairs, tour


def main(model: mi.MIModel) -> Tour:
    """Take the tour, then look again at its steps one by one."""
    seen = tour(model)
    pair = seen.pair
    print(model)

    print("\n1. The layers settle on an answer")
    print(mi.logit_lens(model, pair.clean, target=pair.answer.token_id))

    print("\n2. A head that looks for something")
    print(f"layer {seen.head.layer}, head {seen.head.head}: {seen.head.kind} {seen.head.score:.2f}")

    print("\n3. Without one attention edge")
    cut = cut_edges(model, pair)
    spec = knockout(cut.layer, cut.key)
    print(spec)
    after = model.forward(pair.clean, spec).output[0, -1].softmax(-1)[pair.answer.token_id]
    print(f"P({pair.answer.token!r}) falls from {cut.before:.3f} to {after:.3f}")

    print("\n4. With one activation of another run")
    print(seen.patched)

    print("\nThe pairs of prompts that this model tells apart:")
    for known in read_pairs(model, [(pair.clean, pair.corrupted)]):
        print(f"{known.clean} → {known.answer.token!r}; {known.corrupted} → {known.other.token!r}")
    return seen


if __name__ == "__main__":
    main(mi.MIModel.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "demo"))
