# SPDX-License-Identifier: MIT OR Apache-2.0
"""Printed results on the pages, made anew: `python -m tests.docs.refill`, after a new demo model.

Only fences of kind `text` are written; what `# ->` says is for a person to decide.
"""

from pathlib import Path

from tests.docs.pages import PAGES, fences, run
from torch_mi.storage import write_text


def refilled(page: Path) -> str:
    """The page with its `text` fences as its snippets print them."""
    text = page.read_text(encoding="utf-8")
    space: dict[str, object] = {"__name__": "page"}
    for fence in fences(page, "python"):
        if not fence.run:
            continue
        outcome = run(page, fence, space)
        if fence.printed is not None:
            shown = "\n".join(line.rstrip() for line in outcome.printed.strip("\n").split("\n"))
            old = f"```python\n{fence.text}```\n\n```text\n{fence.printed}```"
            text = text.replace(old, f"```python\n{fence.text}```\n\n```text\n{shown}\n```")
    return text


if __name__ == "__main__":
    for path in PAGES:
        if any(fence.printed is not None for fence in fences(path, "python")):
            write_text(path, refilled(path))
