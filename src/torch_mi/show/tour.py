# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tour of a model in words and pictures, for a page and for a terminal."""

from typing import TYPE_CHECKING

from torch_mi.analysis.tour import HeadPattern, Tour
from torch_mi.results import format_probability
from torch_mi.show.labels import label, one_line
from torch_mi.show.page import Section
from torch_mi.show.pages import LENS, LENS_PICTURE, Page, lens_summary
from torch_mi.show.plots import attention, plot
from torch_mi.show.tables import WIDTH, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

LEAD = (
    "Everything on this page was measured just now, inside `{model}`: what its layers expect, "
    "where its heads look, and which of its inner values carry an answer."
)
LOOKS = {
    "induction": (
        "An *induction head* continues what it has seen before: at a token that occurred earlier, "
        "it looks at the token that came next that time, and so can say it again."
    ),
    "previous_token": (
        "A *previous-token head* looks at the token just before, and so tells each token what "
        "precedes it. Such heads feed others that recognise pairs and repetitions."
    ),
}
STRIPE = {
    "induction": "the bright stripe in the lower left is its attention to what came next",
    "previous_token": "the bright stripe beside the diagonal is its attention one token back",
}


def tour_page(tour: Tour) -> Page:
    """The tour as a page."""
    sections = [
        *lens_sections(tour),
        Section(
            f"2 · A head that looks for something: layer {tour.head.layer}, head {tour.head.head}",
            head_words(tour.head),
            attention(
                tour.head.pattern,
                tour.head.tokens,
                special=tour.head.special,
                title="",
            ),
            f'scores = mi.find_heads(model, kind="{tour.head.kind}")\nscores.best(5)',
        ),
        Section(
            "3 · Cutting one attention edge",
            cut_words(tour),
            plot(tour.cut.grid),
            cut_code(tour),
        ),
        Section(
            "4 · Putting one activation into another run",
            patch_words(tour),
            plot(tour.patched),
            patch_code(tour),
        ),
    ]
    return f"Inside {tour.model_id}", LEAD.format(model=tour.model_id), sections


def lens_sections(tour: Tour) -> list[Section]:
    """One picture for each prompt; what it means beside the first."""
    sections: list[Section] = []
    for i, lens in enumerate(tour.lenses):
        title = (
            f"1 · How an answer forms: {one_line(lens.prompt)}"
            if i == 0
            else (f"The same for {one_line(lens.prompt)}")
        )
        words = f"{LENS} {LENS_PICTURE}\n\n{lens_summary(lens)}" if i == 0 else lens_summary(lens)
        target = "" if lens.target is None else f", target={lens.target[1]!r}"
        code = (
            f'prompt = {lens.prompt!r}\nmi.logit_lens(model, prompt, position="all"{target}).plot()'
        )
        sections.append(Section(title, words, plot(lens), code))
    return sections


def head_words(head: HeadPattern) -> str:
    """What a head does, and how that was found."""
    return (
        f"{LOOKS[head.kind]}\n\n"
        f"All heads were shown random tokens, twice over. Head {head.head} of layer {head.layer} "
        f"pays {format_probability(head.score)} of its attention to the one token that such a head "
        f"should look at. Here it reads {len(head.tokens)} tokens (from the top); "
        f"{STRIPE[head.kind]}."
    )


def cut_words(tour: Tour) -> str:
    """What happens when one edge is cut."""
    cut, pair = tour.cut, tour.pair
    key = label(cut.grid.labels["key"][cut.key])
    answer = label(pair.answer.token)
    effect = (
        f"it now says `{label(cut.instead.token)}` ({format_probability(cut.instead.probability)})"
        if cut.instead.token_id != pair.answer.token_id
        else f"`{answer}` remains its answer"
    )
    return (
        "Attention moves information from earlier tokens to later ones. If the last token is kept "
        "from looking at one other token, that path is gone: its score is set to minus infinity, "
        "so its share of attention is exactly zero.\n\n"
        f"After {one_line(pair.clean)} the model gives `{answer}` "
        f"{format_probability(cut.before)}. Every edge from the last token was tried, in every "
        f"layer. The one to `{key}` in layer {cut.layer} matters most: without it `{answer}` falls "
        f"to {format_probability(cut.after)}, and {effect}. Cut in head {cut.head} alone, it "
        f"leaves {format_probability(cut.after_head)}."
    )


def cut_code(tour: Tour) -> str:
    """The same in Python."""
    cut = tour.cut
    return (
        f"edge = mi.Knockout(at=mi.At(query=-1, key={cut.key}))\n"
        f"spec = mi.HookSpec().intervene(mi.HookPoint.AttnScores({cut.layer}), edge)\n"
        f"model.forward({tour.pair.clean!r}, spec).output"
    )


def patch_words(tour: Tour) -> str:
    """What one patched activation does."""
    pair, grid = tour.pair, tour.patched
    answer = label(pair.answer.token)
    words = (
        f"Two prompts, two answers: {one_line(pair.clean)} gives `{answer}`, "
        f"{one_line(pair.corrupted)} gives `{label(pair.other.token)}`. The second was run again "
        "with one value replaced by its counterpart from the first: the residual stream entering "
        "one layer, at one token. Where the first answer comes back, that place carries it.\n\n"
        f"By itself, the second prompt gives `{answer}` {format_probability(grid.baseline)}. "
    )
    last = len(grid.axes["pos"]) - 1
    places = [(int(p["layer"]), int(p["pos"]), value) for p, value in grid.cells()]
    early = max((p for p in places if p[1] != last), key=lambda p: p[2])
    half = (grid.baseline + pair.answer.probability) / 2
    late = next((p for p in places if p[1] == last and p[2] > half), None)
    words += (
        f"With the first prompt's value at `{label(grid.labels['pos'][early[1]])}`, entering layer "
        f"{early[0]}, it is {format_probability(early[2])}. "
    )
    if late is not None and late[0] > early[0]:
        words += (
            f"From layer {late[0]} on, the last token has what it needs: its value alone gives "
            f"{format_probability(late[2])}. In between, attention has moved the information."
        )
    return words


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
    parts += _chapter("2 · A head that looks for something", head_words(result.head))
    parts += [table(result.heads, width)]
    parts += _chapter("3 · Cutting one attention edge", cut_words(result), cut_code(result))
    parts += [table(result.cut.grid, width)]
    words = patch_words(result)
    parts += _chapter("4 · Putting one activation into another run", words, patch_code(result))
    parts += [table(result.patched, width)]
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
