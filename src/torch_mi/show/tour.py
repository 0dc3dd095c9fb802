# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tour of a model in words and pictures, for a page and for a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING

from torch_mi.analysis.tour_steps import Cut, Pair, Tour
from torch_mi.errors import MIError
from torch_mi.results import format_probability
from torch_mi.show.labels import label, one_line
from torch_mi.show.page import Section
from torch_mi.show.pages import LENS, LENS_PICTURE, Page, lens_summary
from torch_mi.show.plots import plot
from torch_mi.show.tables import WIDTH, table
from torch_mi.sweeps.grid import Grid

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

LEAD = (
    "Everything on this page was measured just now, inside `{model}`: what its layers expect, "
    "{looks}, and which of its inner values carry an answer."
)


Place = tuple[int, int, float]
"""A layer, a position, and the score there."""


@dataclass(frozen=True, eq=False)
class Step:
    """One thing that is seen on a tour."""

    title: str
    words: str
    drawn: object
    """What a page draws."""
    listed: object
    """What a terminal lists."""
    code: str
    """The same in Python."""
    picture: str = ""
    """How to read what a page draws."""


@dataclass(frozen=True)
class Kind:
    """What the tours of one kind of model say that others do not."""

    looks: str
    """What is looked at, for the lead."""
    moved: str
    """What brings information from token to token, and has done so."""
    steps: tuple[Step, ...]
    """The steps between the lenses and the patching."""
    more: tuple[Step, ...] = ()
    """The steps after it."""


@singledispatch
def kind_of(tour: Tour) -> Kind:
    """What is to be said of a tour of its kind."""
    raise MIError(f"there are no words for a {type(tour).__name__}")


def steps_of(tour: Tour) -> Sequence[Step]:
    """Every step but the lenses."""
    kind = kind_of(tour)
    patched = Step(
        "Putting one activation into another run",
        patch_words(tour, kind.moved),
        tour.patched,
        tour.patched,
        patch_code(tour),
    )
    return (*kind.steps, patched, *kind.more)


def tour_page(tour: Tour) -> Page:
    """The tour as a page."""
    steps = [
        Section(
            f"{i} · {step.title}",
            f"{step.words} {step.picture}".rstrip(),
            plot(step.drawn),
            step.code,
        )
        for i, step in enumerate(steps_of(tour), 2)
    ]
    lead = LEAD.format(model=tour.model_id, looks=kind_of(tour).looks)
    return f"Inside {tour.model_id}", lead, [*lens_sections(tour), *steps]


def lens_sections(tour: Tour) -> list[Section]:
    """One picture for each prompt; what it means beside the first."""
    sections: list[Section] = []
    for i, lens in enumerate(tour.lenses):
        title = (
            f"1 · How an answer forms: {one_line(lens.prompt)}"
            if i == 0
            else f"The same for {one_line(lens.prompt)}"
        )
        words = f"{LENS} {LENS_PICTURE}\n\n{lens_summary(lens)}" if i == 0 else lens_summary(lens)
        target = "" if lens.target is None else f", target={lens.target[1]!r}"
        code = (
            f'prompt = {lens.prompt!r}\nmi.logit_lens(model, prompt, position="all"{target}).plot()'
        )
        sections.append(Section(title, words, plot(lens), code))
    return sections


def loss_words(pair: Pair, cut: Cut) -> str:
    """What becomes of the answer with a path cut in all heads, and in one."""
    answer = label(pair.answer.token)
    effect = (
        f"it now says `{label(cut.instead.token)}` ({format_probability(cut.instead.probability)})"
        if cut.instead.token_id != pair.answer.token_id
        else f"`{answer}` remains its answer"
    )
    words = f"`{answer}` falls to {format_probability(cut.after)}, and {effect}."
    if cut.head is not None and cut.after_head is not None:
        left = format_probability(cut.after_head)
        words += f" Cut in head {cut.head} alone, it leaves {left}."
    return words


def patch_words(tour: Tour, moved: str) -> str:
    """What one patched activation does; `moved` is what brings information to the last token."""
    pair, grid = tour.pair, tour.patched
    answer = label(pair.answer.token)
    words = (
        f"Two prompts, two answers: {one_line(pair.clean)} gives `{answer}`, "
        f"{one_line(pair.corrupted)} gives `{label(pair.other.token)}`. The second was run again "
        "with one value replaced by its counterpart from the first: the residual stream entering "
        "one layer, at one token. Where the first answer comes back, that place carries it.\n\n"
        f"By itself, the second prompt gives `{answer}` {format_probability(grid.baseline)}. "
    )
    last, half, places = len(grid.axes["pos"]) - 1, half_way(tour), places_of(grid)
    early = max((p for p in places if p[1] != last), key=lambda p: p[2])
    late = next((p for p in places if p[1] == last and p[2] > half), None)
    words += (
        f"With the first prompt's value at `{label(grid.labels['pos'][early[1]])}` ({early[1]}), "
        f"entering layer {early[0]}, it is {format_probability(early[2])}. "
    )
    if late is not None and late[0] > early[0]:
        return words + (
            f"From layer {late[0]} on, the last token has what it needs: its value alone gives "
            f"{format_probability(late[2])}. In between, {moved} moved the information."
        )
    lost = max((layer for layer, _, value in places if value > half), default=-1) + 1
    if 0 < lost < len(grid.axes["layer"]):
        words += f"From layer {lost} on, no single value of the stream is enough."
    return words


def places_of(grid: Grid) -> list[Place]:
    """Every place of a grid of layers and positions."""
    return [(int(at["layer"]), int(at["pos"]), value) for at, value in grid.cells()]


def half_way(tour: Tour) -> float:
    """Half way from the corrupted prompt's score to the clean one's."""
    return (tour.patched.baseline + tour.pair.answer.probability) / 2


def patch_code(tour: Tour) -> str:
    """The same in Python."""
    return (
        f"clean, corrupted = {tour.pair.clean!r}, {tour.pair.corrupted!r}\n"
        f"metric = mi.prob({tour.pair.answer.token!r})\n"
        'mi.patch(model, clean, corrupted, at="resid_pre", metric=metric).plot()'
    )


@table.register(Tour)
def _tour(result: Tour, width: int = WIDTH) -> "RenderableType":
    """The tour as a terminal shows it."""
    from rich.console import Group  # noqa: PLC0415

    parts: list[RenderableType] = []
    parts += _chapter("1 · How an answer forms", LENS)
    for lens in result.lenses:
        parts += [table(lens, width), *_chapter("", lens_summary(lens))]
    for i, step in enumerate(steps_of(result), 2):
        parts += _chapter(f"{i} · {step.title}", step.words, step.code)
        parts += [table(step.listed, width)]
    return Group(*parts)


def _chapter(title: str, words: str, code: str = "") -> "list[RenderableType]":
    """A heading, paragraphs, and code, for a terminal."""
    from rich.padding import Padding  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    parts: list[RenderableType] = [Text(title, style="bold cyan")] if title else []
    parts += [Padding(_terminal(part), (0, 0, 1, 0)) for part in words.split("\n\n")]
    if code:
        parts.append(Padding(Text(code, style="dim"), (0, 0, 1, 4)))
    return parts


def _terminal(words: str) -> "Text":
    """A paragraph with its code and its stressed words set apart."""
    from rich.text import Text  # noqa: PLC0415

    text = Text()
    for i, part in enumerate(words.replace("*", "").split("`")):
        text.append(part, style="cyan" if i % 2 else "")
    return text
