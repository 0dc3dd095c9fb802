# SPDX-License-Identifier: MIT OR Apache-2.0
"""That a page which is wrong is found out."""

from pathlib import Path

import pytest

from docs import tables
from tests.docs.pages import Fence, fences, run, same
from tests.docs.refill import refilled

PAGE = """# A page

```python
x = 2
x + 1  # -> {sum}
print("a", "b")
# -> {words}
```

<!-- not run: it would fail -->
```python
1 / 0
```

```python
print("one")
print("two")
```

```text
{lines}
```
"""


def written(folder: Path, **said: str) -> Path:
    """A page that says this; what is not given is right."""
    page = folder / "page.md"
    right = {"sum": "3", "words": "a b", "lines": "one\ntwo"}
    page.write_text(PAGE.format(**right | said), encoding="utf-8")
    return page


def problems(page: Path) -> list[str]:
    space: dict[str, object] = {}
    ran = [fence for fence in fences(page, "python") if fence.run]
    return [problem for fence in ran for problem in run(page, fence, space).wrong]


def test_a_right_page_has_no_problems(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert [fence.run for fence in fences(page, "python")] == [True, False, True]
    assert problems(page) == []


@pytest.mark.parametrize(
    ("what", "wrong"), [("sum", "4"), ("words", "a c"), ("lines", "one"), ("sum", "...0")]
)
def test_a_wrong_result_is_found(tmp_path: Path, what: str, wrong: str) -> None:
    assert len(problems(written(tmp_path, **{what: wrong}))) == 1


def test_dots_stand_for_anything(tmp_path: Path) -> None:
    assert problems(written(tmp_path, words="a ...", lines="one\n...")) == []


def test_zeros_have_no_sign() -> None:
    assert same("-0.00 and 1", "0.00 and 1")
    assert not same("-0.01", "0.01")


def test_a_snippet_that_fails_is_no_success(tmp_path: Path) -> None:
    page = written(tmp_path)
    with pytest.raises(ZeroDivisionError):
        run(page, Fence("python", "1 / 0\n", 1, run=True, printed=None), {})


def test_printed_text_is_made_anew(tmp_path: Path) -> None:
    right = written(tmp_path).read_text(encoding="utf-8")
    assert refilled(written(tmp_path, lines="something old")) == right


def test_generated_parts_are_replaced() -> None:
    page = "before\n<!-- generated: absent hooks -->\nold\n<!-- end of absent hooks -->\nafter\n"
    new = tables.refreshed(page)
    assert new.startswith("before\n<!-- generated: absent hooks -->\n")
    assert new.endswith("\n<!-- end of absent hooks -->\nafter\n")
    assert "PosEmbed" in new
    assert "old" not in new
