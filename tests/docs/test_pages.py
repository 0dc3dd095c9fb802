# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the pages say is so: snippets run, commands and names exist, links lead somewhere."""

import inspect
import re
from pathlib import Path

import pytest

import torch_mi
from docs import tables
from docs.verbs import verbs
from tests.docs.pages import DEMO, PAGES, ROOT, fences, name, prose, run
from torch_mi.families import FAMILIES
from torch_mi.hooks.point import HookPoint
from torch_mi.testing import tiny

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SOURCE = re.compile(r'src(?:set)?="([^"]+)"')
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
PUBLIC = re.compile(r"\bmi\.([A-Za-z_]\w*)")
MEMBER = re.compile(r"\bHookPoint\.([A-Z]\w*)")
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))


def shown(page: Path) -> list[list[str]]:
    """The commands that a page shows, as words."""
    lines = [line for fence in fences(page, "console") for line in fence.text.split("\n")]
    return [part.split() for line in lines if line[:2] == "$ " for part in line[2:].split("&&")]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_snippets_do_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippets = [fence for fence in fences(page, "python") if fence.run]
    if not DEMO.is_file() and any('"demo"' in fence.text for fence in snippets):
        pytest.skip("the demo model is not in this checkout: make demo-models")
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {"__name__": "page"}
    wrong = [problem for fence in snippets for problem in run(page, fence, space).wrong]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    targets = re.findall(
        r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    for words in shown(page):
        if words[0] == "make":
            assert words[1] in targets, " ".join(words)
        if words[0] == "torch-mi" and not words[1].startswith("-"):
            verb = next((v for v in verbs() if v.split() == words[1 : 1 + len(v.split())]), None)
            assert verb is not None, " ".join(words)
            known = {opt for p in verbs()[verb].params for opt in p.opts}
            for word in words[2:]:
                option = word.partition("=")[0]
                assert not option.startswith("--") or option in {*known, "--help"}, option


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_are_public(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    unknown = {word for word in PUBLIC.findall(text) if word not in torch_mi.__all__}
    assert not unknown
    members = {word for word in MEMBER.findall(text) if word not in HookPoint.__members__}
    assert not members


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in [*LINK.findall(prose(page)), *SOURCE.findall(prose(page))]:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> list[str]:
    """What the headings of a page are called in links."""
    words = [re.sub(r"[^\w\- ]", "", title) for title in HEADING.findall(prose(page))]
    return [title.lower().replace(" ", "-") for title in words]


def test_generated_parts_are_fresh() -> None:
    stale = [path.name for path, text in tables.pages().items() if path.read_text() != text]
    assert not stale, f"python -m docs.tables writes {stale} anew"


def test_every_generated_part_has_its_place() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {found[1] for found in tables.MARKED.findall(text)} == set(tables.PARTS)


@pytest.mark.parametrize("page", DECISIONS, ids=name)
def test_a_decision_has_its_four_parts(page: Path) -> None:
    title, *parts = HEADING.findall(page.read_text(encoding="utf-8"))
    assert title.startswith(f"{int(page.name[:4])}. ")
    assert parts == ["Question", "Decision", "Why", "Trade-offs"]


def test_decisions_are_listed() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    titles = [HEADING.findall(page.read_text(encoding="utf-8"))[0] for page in DECISIONS]
    listed = re.findall(r"^(\d+)\. \[(.+)\]\((.+)\)$", index, re.MULTILINE)
    assert [f"{number}. {title}" for number, title, _ in listed] == titles
    assert [path for _, _, path in listed] == [page.name for page in DECISIONS]


def test_every_page_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / t.partition("#")[0]).resolve() for t in LINK.findall(prose(index))}
    pages = {page.resolve() for page in index.parent.glob("*.md")} - {index.resolve()}
    assert pages <= linked


def test_every_hook_point_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    assert all(f"| `{point.name}` |" in page for point in HookPoint)


def test_the_readme_counts_right() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    offered = {point for family in FAMILIES for point in tiny(family).backend.hook_points}
    assert f"**Watch** {len(offered)} kinds of places" in text
    assert f"**Load** {len(FAMILIES)} families" in text
    assert f"torch-mi has {len(FAMILIES)} families" in text


def test_every_public_name_is_documented() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [n for n in torch_mi.__all__[1:] if not re.search(rf"\b{n}\b", text)]
    assert not missing


def test_every_public_name_says_what_it_is() -> None:
    public = [vars(torch_mi).get(n) or getattr(torch_mi, n) for n in torch_mi.__all__[1:]]
    assert all(inspect.getdoc(value) for value in public)


def test_every_verb_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert all(f"### `{verb}`" in page for verb in verbs())
