# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the tour of a model with attention says and draws."""

from typing import TYPE_CHECKING

from torch_mi.analysis.tour_attention import AttentionTour, HeadPattern
from torch_mi.results import format_probability
from torch_mi.show.labels import label, one_line
from torch_mi.show.plots import attention, plot
from torch_mi.show.tour import Kind, Step, kind_of, loss_words

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

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


@kind_of.register(AttentionTour)
def _attention(tour: AttentionTour) -> Kind:
    """A head at work, and an edge that is cut."""
    where = f"layer {tour.head.layer}, head {tour.head.head}"
    return Kind(
        looks="where its heads look",
        moved="attention has",
        steps=(
            Step(
                f"A head that looks for something: {where}",
                head_words(tour.head),
                tour.head,
                tour.heads,
                f'scores = mi.find_heads(model, kind="{tour.head.kind}")\nscores.best(5)',
                f"Here it reads {len(tour.head.tokens)} tokens (from the top); "
                f"{STRIPE[tour.head.kind]}.",
            ),
            Step(
                "Cutting one attention edge",
                cut_words(tour),
                tour.cut.grid,
                tour.cut.grid,
                cut_code(tour),
            ),
        ),
    )


@plot.register(HeadPattern)
def _pattern(head: HeadPattern) -> "Figure":
    return attention(head.pattern, head.tokens, special=head.special, title="")


def head_words(head: HeadPattern) -> str:
    """What a head does, and how that was found."""
    return (
        f"{LOOKS[head.kind]}\n\n"
        f"All heads were shown random tokens, twice over. Head {head.head} of layer {head.layer} "
        f"pays {format_probability(head.score)} of its attention to the one token that such a head "
        "should look at."
    )


def cut_words(tour: AttentionTour) -> str:
    """What happens when one edge is cut."""
    cut, pair = tour.cut, tour.pair
    return (
        "Attention moves information from earlier tokens to later ones. If the last token is kept "
        "from looking at one other token, that path is gone: its score is set to minus infinity, "
        "so its share of attention is exactly zero.\n\n"
        f"After {one_line(pair.clean)} the model gives `{label(pair.answer.token)}` "
        f"{format_probability(cut.before)}. Every edge from the last token was tried, in every "
        f"layer. The one to `{label(cut.token)}` in layer {cut.layer} matters most: without it "
        f"{loss_words(pair, cut)}"
    )


def cut_code(tour: AttentionTour) -> str:
    """The same in Python."""
    cut = tour.cut
    return (
        f"edge = mi.Knockout(at=mi.At(query=-1, key={cut.pos}))\n"
        f"spec = mi.HookSpec().intervene(mi.HookPoint.AttnScores({cut.layer}), edge)\n"
        f"model.forward({tour.pair.clean!r}, spec).output"
    )
