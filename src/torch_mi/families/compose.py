# SPDX-License-Identifier: MIT OR Apache-2.0
"""Rules made of rules: the same in every layer, or the parts of an embedding or a head."""

from typing import Any

from torch_mi.config.parts import Embedding, Head
from torch_mi.families.rules import Reader, Rule


def every(rule: Rule) -> Rule:
    """What `rule` says, once for each layer."""
    return lambda c: (rule(c),) * max(c.need(int, "num_hidden_layers"), 0)


def _parts(c: Reader, rules: dict[str, Rule | None]) -> dict[str, Any]:
    """The parts for which there is a rule."""
    return {name: rule(c) for name, rule in rules.items() if rule is not None}


def embedding(
    *, scale: Rule | None = None, learned: Rule | None = None, norm: Rule | None = None
) -> Rule:
    """How tokens become the first residual stream."""
    return lambda c: Embedding(**_parts(c, {"scale": scale, "learned": learned, "norm": norm}))


def head(
    *, bias: Rule | None = None, scale: Rule | None = None, softcap: Rule | None = None
) -> Rule:
    """How the last residual stream becomes logits."""
    return lambda c: Head(**_parts(c, {"bias": bias, "scale": scale, "softcap": softcap}))
