# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the tour of a recurrent model says and draws."""

from typing import TYPE_CHECKING

from torch_mi.analysis.effective import FORMS
from torch_mi.analysis.tour_states import StateReading, StateTour
from torch_mi.results import format_probability
from torch_mi.show.labels import label, one_line
from torch_mi.show.plots import attention, plot
from torch_mi.show.tables import WIDTH, plain, table, titled
from torch_mi.show.tour import Kind, Step, half_way, kind_of, loss_words, places_of
from torch_mi.sweeps.grid import Grid

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

BESIDE = "Putting in what flows beside the stream, too"
NAMED = 3
"""Tokens that are said in words."""
ROWS = 24
"""Tokens that a table shows, those read most."""
FAINT = 0.1
"""Smaller weights are written with one digit."""


@kind_of.register(StateTour)
def _states(tour: StateTour) -> Kind:
    """What a state gives back, and a write that is knocked out."""
    return Kind(
        looks="what is read from its states",
        moved="the states have",
        steps=(
            Step(
                f"What is read from a state: {head_of(tour.reading)}",
                reading_words(tour),
                tour.reading,
                tour.reading,
                reading_code(tour),
                "In the picture, that is the bottom row.",
            ),
            Step(
                "Keeping one token from writing to a state",
                cut_words(tour),
                tour.cut.grid,
                tour.cut.grid,
                cut_code(tour),
            ),
        ),
        more=() if tour.whole is None else (whole_step(tour, tour.whole),),
    )


def head_of(reading: StateReading) -> str:
    """Which head it is."""
    head = "mean of channels" if reading.head is None else f"head {reading.head}"
    return f"layer {reading.layer}, {head}"


def reading_words(tour: StateTour) -> str:
    """What the last token reads, and how its head was found."""
    reading, pair = tour.reading, tour.pair
    tokens, row = reading.weights.tokens, reading.row
    most = sorted(range(len(row)), key=lambda i: -abs(row[i]))[:NAMED]
    said = ", ".join(f"`{label(tokens[i])}` ({i}) {signed(row[i])}" for i in sorted(most))
    asked = ", ".join(f"`{label(tokens[i])}` ({i})" for i in reading.asked[:NAMED])
    asked += ", …" if len(reading.asked) > NAMED else ""
    means = "The heads of this model are single channels, so each layer's mean is taken. "
    return (
        "A recurrent model does not look back at earlier tokens. Each layer carries a *state* of "
        "fixed size along the text: every token writes a value to it, and reads from it a mixture "
        "of the values written so far. How much of each value is in the mixture can be computed "
        "exactly. It is as if the model attended, but with weights of either sign and any size: "
        "below zero, what a token wrote is taken away.\n\n"
        f"{one_line(pair.clean)} and {one_line(pair.corrupted)} have different answers and differ "
        f"in {asked} alone (tokens are counted from 0), so what decides comes from there. Each "
        "head was scored by how much of the last token's weights, sign aside, falls there. "
        f"{means if reading.head is None else ''}The highest share is "
        f"{format_probability(reading.share)}, in {head_of(reading)}; if all tokens counted alike "
        f"it would be {format_probability(reading.chance)}. What its last token reads most: "
        f"{said}."
    )


def signed(weight: float) -> str:
    """A weight with its sign."""
    return f"{weight:+.2f}" if abs(weight) >= FAINT else f"{weight:+.1g}"


def reading_code(tour: StateTour) -> str:
    """The same in Python."""
    reading = tour.reading
    heads = "" if reading.head is None else f", heads={reading.head}"
    return (
        "from torch_mi.analysis.effective import effective_attention\n"
        f"prompt = {tour.pair.clean!r}\n"
        f"effective_attention(model, prompt, layers={reading.layer}{heads}).plot()"
    )


def cut_words(tour: StateTour) -> str:
    """What happens when one token writes nothing to one state."""
    cut, pair = tour.cut, tour.pair
    return (
        "States move information from earlier tokens to later ones. If one token writes nothing to "
        "the state of one layer, later tokens cannot read there what it would have written. All "
        "else goes on: what the state held before, and whatever the model hands from each token "
        "straight to the next.\n\n"
        f"After {one_line(pair.clean)} the model gives `{label(pair.answer.token)}` "
        f"{format_probability(cut.before)}. Every token's write was left out, in every layer, one "
        f"at a time. That of `{label(cut.token)}` ({cut.pos}) in layer {cut.layer} matters most: "
        f"without it {loss_words(pair, cut)}"
    )


def cut_code(tour: StateTour) -> str:
    """The same in Python."""
    cut = tour.cut
    return (
        f"write = mi.StateKnockoutSpec(positions=({cut.pos},), layers=({cut.layer},))\n"
        "spec = mi.HookSpec().set_state_knockout(write)\n"
        f"model.forward({tour.pair.clean!r}, spec).output"
    )


def whole_step(tour: StateTour, grid: Grid) -> Step:
    """What all that enters a layer carries, where more does than the residual stream."""
    last, half = len(grid.axes["pos"]) - 1, half_way(tour)
    enough = [place for place in places_of(grid) if place[2] > half]
    deepest = max((place for place in enough if place[1] != last), default=None)
    words = (
        "In this model the residual stream is not all that enters a layer: the values that the "
        "first layer computes of a token also flow beside the stream, and every later layer mixes "
        "them into its own. Above, they were left as they were. Here both were put in."
    )
    if deepest is None or deepest[0] == 0:
        words += " Beyond the first layer, no place brings the first answer back even so."
        return Step(BESIDE, words, grid, grid, whole_code(tour, 1, last))
    layer, pos, value = deepest
    alone = float(tour.patched.values[layer, pos])
    words += (
        f"\n\nWith all that the first prompt has at `{label(grid.labels['pos'][pos])}` ({pos}), "
        f"entering layer {layer}, `{label(tour.pair.answer.token)}` gets "
        f"{format_probability(value)}; the stream alone gave it {format_probability(alone)}."
    )
    if layer == len(grid.axes["layer"]) - 1 and all(place[1] != last for place in enough):
        words += (
            " So what decides stays at that token up to the last layer, and only there does the "
            "last token take it up."
        )
    return Step(BESIDE, words, grid, grid, whole_code(tour, layer, pos))


def whole_code(tour: StateTour, layer: int, pos: int) -> str:
    """The same in Python, at one place."""
    return (
        f"clean, corrupted = {tour.pair.clean!r}, {tour.pair.corrupted!r}\n"
        f"later = range({layer}, model.num_layers)\n"
        f"hooks = [mi.HookPoint.ResidPre({layer}), *map(mi.HookPoint.RwkvVFirst, later)]\n"
        "run = model.forward(clean, mi.HookSpec().capture(*hooks))\n"
        "spec = mi.HookSpec()\n"
        "for hook in hooks:\n"
        f"    spec.intervene(hook, mi.Replace(run[hook][:, {pos}], at=mi.At(pos={pos})))\n"
        "model.forward(corrupted, spec).output"
    )


@plot.register(StateReading)
def _reading(reading: StateReading) -> "Figure":
    weights = reading.weights
    pattern, unit = weights.of(reading.layer), FORMS[weights.kind]
    return attention(pattern, weights.tokens, special=weights.special, title="", unit=unit)


@table.register(StateReading)
def _reading_table(reading: StateReading, width: int = WIDTH) -> "RenderableType":
    """What the last token reads, token by token."""
    row, tokens = reading.row, reading.weights.tokens
    most = sorted(range(len(row)), key=lambda i: -abs(row[i]))[:ROWS]
    out = plain()
    out.add_column("of")
    out.add_column("weight", justify="right")
    for i in sorted(most):
        out.add_row(f"{label(tokens[i])} ({i})", signed(row[i]))
    left = len(row) - len(most)
    title = f"what {label(tokens[-1])} reads · {head_of(reading)}"
    title = f"{title}\n{one_line(reading.weights.prompt, width - 4)}"
    return titled(title, out, f"and {left} more tokens, of which it reads less" if left else "")
