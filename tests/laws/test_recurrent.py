# SPDX-License-Identifier: MIT OR Apache-2.0
"""The laws, held against recurrent models of every version."""

import pytest

from torch_mi import testing
from torch_mi.model import MIModel

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "4": ("rwkv", {"attention_hidden_size": 8}),
    "5.0": ("rwkv5", {"model_version": "5_0"}),
    "5.2": ("rwkv5", {}),
    "6": (
        "rwkv6",
        {"attention_hidden_size": None, "head_size": None, "num_heads": 4, "num_hidden_layers": 1},
    ),
    "7": ("rwkv7", {}),
}
"""Version 6 has half as many keys as values here, as fla has them."""
KINDS["6"][1].update({"expand_k": 0.5, "expand_v": 1.0})
SLOW: dict[testing.Law, tuple[str, ...]] = {
    testing.watching_changes_nothing: ("4", "7"),
    testing.identity_edits_change_nothing: ("4", "7"),
    testing.edits_reach_no_earlier_position: ("6", "7"),
    testing.captures_can_be_differentiated: ("6", "7"),
}
"""Laws that take many runs, and the kinds that are held to them."""
CASES = [
    pytest.param(law, kind, id=f"{law.__name__}-{kind}")
    for law in testing.LAWS
    for kind in SLOW.get(law, tuple(KINDS))
]


def small(kind: str) -> MIModel:
    """A model of two layers, if a later one does not do what the first does."""
    family, changes = KINDS[kind]
    return testing.tiny(family, changes={"num_hidden_layers": 2, **changes})


@pytest.mark.parametrize(("law", "kind"), CASES)
def test_law(law: testing.Law, kind: str) -> None:
    model = small(kind)
    law(model, testing.random_tokens(model, 2, 5))
