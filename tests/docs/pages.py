# SPDX-License-Identifier: MIT OR Apache-2.0
"""The pages as the tests read them: fences, what they claim to print, links.

In a Python fence, `# -> text` after a statement, or on the lines below it, says what the statement
prints or, for a bare expression, what its value looks like; `...` stands for anything. A fence of
kind `text` right after a Python fence says all that the fence prints. A fence after
`<!-- not run: reason -->` is shown and not run.
"""

import ast
import contextlib
import doctest
import io
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "src" / "torch_mi" / "demo" / "model.safetensors"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ARROW = "# ->"
MINUS_ZERO = re.compile(r"-(0\.0+)(?!\d)")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Fence:
    """A piece of code on a page."""

    kind: str
    text: str
    line: int
    """Where it stands on the page: the line before its first."""
    run: bool
    printed: str | None
    """Everything it is said to print, if the page shows that."""


def name(page: Path) -> str:
    """A page's path from the project's root."""
    return page.relative_to(ROOT).as_posix()


def fences(page: Path, kind: str) -> list[Fence]:
    """A page's fences of one kind."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    out: list[Fence] = []
    for i, match in enumerate(found):
        before = text[: match.start()].rstrip().rpartition("\n")[2]
        printed = None
        if i + 1 < len(found) and found[i + 1][1] == "text":
            between = text[match.end() : found[i + 1].start()]
            printed = found[i + 1][2] if not between.strip() else None
        line = text.count("\n", 0, match.start()) + 1
        out.append(Fence(match[1], match[2], line, not before.startswith("<!-- not run"), printed))
    return [fence for fence in out if fence.kind == kind]


def prose(page: Path) -> str:
    """A page without its fences."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def wanted(lines: list[str], first: int, last: int) -> str | None:
    """What a statement on these lines (from 1) is said to print."""
    _, arrow, said = lines[last - 1].partition(ARROW)
    if arrow:
        return said.strip()
    below: list[str] = []
    for line in lines[last:]:
        start = ARROW if not below else "#"
        if not line.startswith(start):
            break
        below.append(line.removeprefix(start).strip())
    return "\n".join(below) if below else None


@dataclass(frozen=True)
class Outcome:
    """What a fence printed, and where that is not what the page says."""

    printed: str
    wrong: list[str]


def run(page: Path, fence: Fence, space: dict[str, object]) -> Outcome:
    """Run a fence in a namespace."""
    lines, tree = fence.text.split("\n"), ast.parse(fence.text)
    everything, wrong = "", list[str]()
    for statement in tree.body:
        assert statement.end_lineno is not None
        where = f"{page}:{fence.line + statement.lineno}"
        out, value = io.StringIO(), None
        with contextlib.redirect_stdout(out):
            if isinstance(statement, ast.Expr):
                value = eval(compile(ast.Expression(statement.value), where, "eval"), space)
            else:
                exec(compile(ast.Module([statement], []), where, "exec"), space)
        printed = out.getvalue()
        everything += printed
        got = printed.strip() if printed else repr(value)
        want = wanted(lines, statement.lineno, statement.end_lineno)
        if want is not None and not same(want, got):
            wrong.append(f"{where}: shows {want!r}, but it is {got!r}")
    if fence.printed is not None and not same(fence.printed, everything):
        wrong.append(f"{page}:{fence.line}: prints\n{everything}")
    return Outcome(everything, wrong)


def same(want: str, got: str) -> bool:
    """Whether a page's text fits what came out; the sign of a zero is a matter of rounding."""
    want, got = (MINUS_ZERO.sub(r"\1", text.strip()) + "\n" for text in (want, got))
    return doctest.OutputChecker().check_output(want, got, FLAGS)
