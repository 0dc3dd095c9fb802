# SPDX-License-Identifier: MIT OR Apache-2.0
"""Known families that a `model_type` or a class name makes one think of."""

import re
from collections.abc import Iterator, Mapping, Sequence

from torch_mi.families.family import Family
from torch_mi.families.refusals import classes

SHORT = 3
"""Names up to this length are looked for as words of their own."""


def hinted(raw: Mapping[str, object], families: Sequence[Family]) -> Iterator[str]:
    """The families whose names occur in the config's own; longer names hide those within them."""
    said = " ".join([str(raw.get("model_type")), *classes(raw)]).lower()
    said = re.sub(r"for(causallm|.*head.*)\b", " ", said)
    spoken = plain(said)
    found = [f.model_type for f in families if occurs(f.model_type, spoken)]
    for name in found:
        if not any(plain(name) in plain(other) and other != name for other in found):
            yield name


def plain(name: str) -> str:
    """A name without its separators."""
    return re.sub(r"[_\-.]", "", name.removesuffix("_text"))


def occurs(name: str, said: str) -> bool:
    """Whether a family's name occurs in what is said."""
    name = plain(name)
    if len(name) > SHORT:
        return name in said
    return re.search(rf"(?<![a-z]){name}(?![a-z])", said) is not None
