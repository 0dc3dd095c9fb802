# SPDX-License-Identifier: MIT OR Apache-2.0
"""Pages: pictures and words in one HTML file that needs nothing else, not even a network."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from torch_mi.errors import MIError
from torch_mi.show.heat import DARK_SCALES, SCALES
from torch_mi.storage import write_text

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """Part of a page.

    In `words`, an empty line ends a paragraph, backquotes hold code, stars stress.
    """

    title: str
    words: str = ""
    figure: Any = None
    """A plotly figure, if there is a picture."""
    code: str = ""


def write(
    path: str | Path, title: str, lead: str, sections: Sequence[Section], footer: str = ""
) -> Path:
    """Write a page to `path`."""
    return write_text(path, render(title, lead, sections, footer))


def render(title: str, lead: str, sections: Sequence[Section], footer: str = "") -> str:
    """A page as HTML."""
    scales = json.dumps({"light": SCALES, "dark": DARK_SCALES})
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="torch-mi">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{_part("page.css")}</style>
<script>{plotly_js()}</script>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{_paragraphs(lead, "lead")}
{"".join(map(_section, sections))}
<footer>{_inline(footer)}</footer>
</main>
<script type="application/json" id="scales">{scales}</script>
<script>
{_part("page.js")}</script>
</body>
</html>
"""


@cache
def plotly_js() -> str:
    """The plotting library, as the page carries it."""
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 - an optional extra
    except ImportError as cause:
        raise MIError("pages need plotly: pip install torch-mi[viz]") from cause
    return str(get_plotlyjs())


def _part(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _section(section: Section) -> str:
    figure = ""
    if section.figure is not None:
        data = str(section.figure.to_json()).replace("<", "\\u003c")
        figure = f'<div class="plot"></div>\n<script type="application/json">{data}</script>\n'
    code = f"<pre><code>{escape(section.code)}</code></pre>\n" if section.code else ""
    return (
        f"<section>\n<h2>{escape(section.title)}</h2>\n{_paragraphs(section.words)}{figure}"
        f"{code}</section>\n"
    )


def _paragraphs(words: str, kind: str = "") -> str:
    made = f' class="{kind}"' if kind else ""
    parts = [part.strip() for part in words.split("\n\n") if part.strip()]
    return "".join(f"<p{made}>{_inline(part)}</p>\n" for part in parts)


def _inline(words: str) -> str:
    code = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(words, quote=False))
    return re.sub(r"\*(\w[\w -]*)\*", r"<em>\1</em>", code)
