# SPDX-License-Identifier: MIT OR Apache-2.0
"""How tokens, layers and prompts are written wherever they are shown."""

import html
from collections.abc import Sequence

from torch_mi.results import format_token

SPACE = "·"
LONGEST = 14
GREY = "#8b949e"


def label(token: str, longest: int = LONGEST) -> str:
    r"""A token on one line with its spaces visible, cut to `longest` characters.

    >>> label(" Paris"), label("\n"), label("")
    ('·Paris', '\\n', '∅')
    """
    text = format_token(token).replace(" ", SPACE) or "∅"
    return text if len(text) <= longest else text[: longest - 1] + "…"


def markup(token: str, longest: int = LONGEST) -> str:
    """A token for plotly, which reads labels as a kind of HTML."""
    return html.escape(label(token, longest), quote=False)


def tick_labels(tokens: Sequence[str], special: Sequence[bool]) -> list[str]:
    """Tokens for a plotly axis; those that stand for structure are dimmed."""
    return [
        f"<span style='color:{GREY}'>{markup(token)}</span>" if dim else markup(token)
        for token, dim in zip(tokens, special, strict=True)
    ]


def layer_label(layer: int) -> str:
    """A layer's number; the embedding's is -1."""
    return "embed" if layer < 0 else str(layer)


def ordinal(n: int) -> str:
    """A rank in words' short form.

    >>> [ordinal(n) for n in (1, 2, 3, 4, 11, 22)]
    ['1st', '2nd', '3rd', '4th', '11th', '22nd']
    """
    teens = 10 < n % 100 < 14  # noqa: PLR2004 - eleventh, twelfth, thirteenth
    return f"{n}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"


def one_line(text: str, longest: int = 72) -> str:
    """A prompt in quotes on one line, cut in the middle if it is long."""
    flat = format_token(text)
    if len(flat) > longest:
        half = longest // 2 - 1
        flat = f"{flat[:half]} … {flat[-half:]}"
    return f'"{flat}"'
