# SPDX-License-Identifier: MIT OR Apache-2.0
"""How tokens, layers and prompts are written wherever they are shown."""

import ast
import html
import re
from collections.abc import Sequence

from torch_mi.results import format_token

SPACE = "·"
LONGEST = 14
GREY = "#8b949e"
SPECIAL = re.compile(r"<\|.+\|>|</?[a-z_]+\d*>|\[[A-Z]+\d*\]")
_VALUE = r"""\([^)]*\)|\d+|'[^']*'|"[^"]*\""""
METRIC = re.compile(rf"(?P<name>\w+)\(token=(?P<token>{_VALUE})(?:, other=(?P<other>{_VALUE}))?\)")
SAID = {
    "Logit": "logit",
    "LogitDiff": "logit",
    "Prob": "probability",
    "LogProb": "log probability",
    "Rank": "rank",
}
"""What the metrics of words are called."""


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


def looks_special(token: str) -> bool:
    """Whether a token is spelt as those are that stand for structure.

    For results that hold the tokens' texts alone.

    >>> [looks_special(t) for t in ("<|bos|>", "</s>", "[CLS]", " <", "The")]
    [True, True, True, False, False]
    """
    return SPECIAL.fullmatch(token) is not None


def spelt_labels(tokens: Sequence[str]) -> list[str]:
    """Tokens for a plotly axis; those spelt as special ones are dimmed."""
    return tick_labels(tokens, [looks_special(token) for token in tokens])


def metric_words(metric: str) -> str:
    """A metric as a reader would say it; those of the user's stay as they are.

    >>> metric_words("LogitDiff(token=' Paris', other=' Rome')")
    'logit of ·Paris over ·Rome'
    >>> metric_words("Prob(token=3)"), metric_words("mine")
    ('probability of token 3', 'mine')
    """
    found = METRIC.match(metric)
    if found is None or found["name"] not in SAID:
        return metric
    words = [_word(text) for text in (found["token"], found["other"]) if text is not None]
    return f"{SAID[found['name']]} of {' over '.join(words)}{metric[found.end() :]}"


def metric_markup(metric: str, longest: int = 60) -> str:
    """The same for plotly, cut to `longest` characters."""
    words = format_token(metric_words(metric))
    return html.escape(words if len(words) <= longest else f"{words[: longest - 1]}…", quote=False)


def _word(text: str) -> str:
    if text.startswith("("):
        return "each prompt's word"
    return f"token {text}" if text.isdecimal() else label(str(ast.literal_eval(text)))


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
