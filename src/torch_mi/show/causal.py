# SPDX-License-Identifier: MIT OR Apache-2.0
"""How knockouts, steering, doses and directions look."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch_mi.analysis.activation_steering import Convergence, Directions
from torch_mi.analysis.changes import Changed
from torch_mi.analysis.dose import DoseResponseCurve
from torch_mi.analysis.knockout import AblationResult
from torch_mi.analysis.states import StateAblationResult, StateSteeringResult
from torch_mi.analysis.steering import SteeringResult
from torch_mi.results import floats, format_probability
from torch_mi.show.heat import ACCENT, Heat, figures, look
from torch_mi.show.labels import label, markup, one_line
from torch_mi.show.page import Section
from torch_mi.show.pages import Page
from torch_mi.show.plots import plot
from torch_mi.show.sweeps import markup_title
from torch_mi.show.tables import WIDTH, plain, table, titled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

SOFT = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}
GREY = "#8b949e"
SHOWN = 8
KNOCKOUT = (
    "Attention moves what a model knows from one token to another. Here some of these moves were "
    "forbidden: the edges' scores were set to minus infinity before the softmax, so their "
    "probability is exactly zero and the rest of each row takes it over."
)
STEER = (
    "Attention along some edges was turned up and down, and every row renormalised so that it "
    "still sums to one."
)


@plot.register(AblationResult)
@plot.register(SteeringResult)
@plot.register(StateAblationResult)
@plot.register(StateSteeringResult)
def _changed(result: Changed) -> "Figure":
    """The tokens that changed most: a grey bar before, a coloured one after."""
    most = result.top_changed_tokens(SHOWN)[::-1]
    names = [markup(result.contrast.names[c.token_id]) for c in most]
    go = figures()
    bars = [("after", [c.after for c in most], ACCENT), ("before", [c.before for c in most], GREY)]
    fig = go.Figure(
        [
            go.Bar(
                x=values,
                y=list(range(len(names))),
                orientation="h",
                name=name,
                marker={"color": colour},
                customdata=names,
                hovertemplate=f"%{{customdata}} {name}: %{{x:.3%}}<extra></extra>",
            )
            for name, values, colour in bars
        ]
    )
    fig.update_layout(look(f"What the model says with {markup_title(edit_of(result))}", 8, 1))
    fig.update_layout(
        xaxis={"tickformat": ".0%", "title": {"text": "probability"}} | SOFT,
        yaxis={"tickvals": list(range(len(names))), "ticktext": names, "ticklabelstandoff": 5}
        | SOFT,
        barmode="group",
        showlegend=True,
        legend={"traceorder": "reversed"},
    )
    return fig


def edit_of(result: Changed) -> str:
    """What was done, in words."""
    if isinstance(result, AblationResult):
        return f"{result.spec} removed"
    if isinstance(result, StateAblationResult | StateSteeringResult):
        return writes_of(result)
    return str(result.spec) if isinstance(result, SteeringResult) else "an edit"


def writes_of(result: StateAblationResult | StateSteeringResult) -> str:
    """Which writes to the state were removed or scaled, in words."""
    spec = result.spec
    places = dict.fromkeys(spec.positions)
    tokens = ", ".join(f"{label(result.contrast.tokens[p])} ({p})" for p in places)
    where = [
        f"every {name}"
        if some is None
        else f"{name}{'s' * (len(some) > 1)} {', '.join(map(str, some))}"
        for name, some in (("layer", spec.layers), ("head", spec.heads))
    ]
    done = "removed"
    if isinstance(result, StateSteeringResult):
        done = f"× {result.spec.scale:g}"
    return f"what {tokens} writes to the state in {', '.join(where)} {done}"


@table.register(AblationResult)
@table.register(SteeringResult)
@table.register(StateAblationResult)
@table.register(StateSteeringResult)
def _changed_table(result: Changed, width: int = WIDTH) -> "RenderableType":
    out = plain()
    out.add_column("token")
    for name in ("before", "after", "change"):
        out.add_column(name, justify="right")
    for c in result.top_changed_tokens(SHOWN):
        out.add_row(
            label(result.contrast.names[c.token_id]),
            format_probability(c.before),
            format_probability(c.after),
            f"{100 * (c.after - c.before):+.2f}",
        )
    prompt = one_line("".join(result.contrast.tokens), width - 4)
    return titled(f"{edit_of(result)}\n{prompt}", out, change_in_words(result))


def change_in_words(result: Changed) -> str:
    """How far the answer moved."""
    words = f"KL divergence {result.kl_divergence():.4g}"
    if isinstance(result, SteeringResult) and result.baseline_attention_mean is not None:
        words += (
            f" · attention along the edges {result.baseline_attention_mean:.3f}"
            f" → {result.steered_attention_mean:.3f}"
        )
    return words


@plot.register(DoseResponseCurve)
def _dose(result: DoseResponseCurve) -> "Figure":
    """Attention across, KL divergence upwards; each point says its factor."""
    go = figures()
    points = sorted(result.points, key=lambda p: p.attention_level)
    fig = go.Figure(
        go.Scatter(
            x=[p.attention_level for p in points],
            y=[p.kl_divergence for p in points],
            text=[f"× {p.scale_factor:.3g}" for p in points],
            mode="lines+markers+text",
            textposition="top center",
            cliponaxis=False,
            line={"color": ACCENT, "width": 2},
            hovertemplate="%{text}: attention %{x:.3f}, KL %{y:.4g}<extra></extra>",
        )
    )
    base = result.baseline_attention
    fig.add_vline(x=base, line={"dash": "dot", "color": GREY, "width": 1})
    fig.update_layout(look(f"Attention {markup_title(result.condition)}", 8, 1))
    fig.update_layout(
        xaxis={"title": {"text": f"attention along the edges ({base:.3f} unedited)"}} | SOFT,
        yaxis={
            "title": {"text": "KL divergence (nats)"},
            "rangemode": "tozero",
            "exponentformat": "power",
        }
        | SOFT,
    )
    return fig


@table.register(DoseResponseCurve)
def _dose_table(result: DoseResponseCurve, width: int = WIDTH) -> "RenderableType":
    out = plain()
    for name in ("factor", "attention", "KL divergence"):
        out.add_column(name, justify="right")
    for p in result.points:
        out.add_row(f"{p.scale_factor:.3g}", f"{p.attention_level:.3f}", f"{p.kl_divergence:.4g}")
    title = f"attention {result.condition}\n{one_line(result.sample_id, width - 4)}"
    return titled(title, out, f"without edits the attention is {result.baseline_attention:.3f}")


@plot.register(Directions)
def _directions(result: Directions) -> "Figure":
    """How long the direction is at each layer."""
    fig = figures().Figure(
        figures().Scatter(
            x=list(result.layers),
            y=result.lengths,
            mode="lines+markers",
            line={"color": ACCENT, "width": 2},
            hovertemplate="layer %{x}: %{y:.4g}<extra></extra>",
        )
    )
    fig.update_layout(look("How far apart two sets of prompts are", 8, 1))
    fig.update_layout(
        xaxis={"title": {"text": "layer"}, "tickformat": "d"} | SOFT,
        yaxis={"title": {"text": "length of the direction"}, "rangemode": "tozero"} | SOFT,
    )
    return fig


@table.register(Directions)
def _directions_table(result: Directions, width: int = WIDTH) -> "RenderableType":
    out = plain()
    out.add_column("layer", justify="right")
    out.add_column("length of the direction", justify="right")
    for layer, length in zip(result.layers, result.lengths, strict=True):
        out.add_row(str(layer), f"{length:.4g}")
    sides = [one_line(" | ".join(side), width - 8) for side in (result.positive, result.negative)]
    return titled(f"from {sides[1]}\n  to {sides[0]}", out)


@plot.register(Convergence)
def _convergence(result: Convergence) -> "Figure":
    """Steered layers upwards, layers across."""
    rows = [floats(row) for row in result.cosines]
    low = min(min(row) for row in rows)
    columns = [str(i) for i in range(len(rows[0]))]
    return Heat(
        values=rows,
        rows=[str(layer) for layer in result.layers],
        columns=columns,
        words=[[f"{value:.2f}" for value in row] for row in rows],
        hover=[
            [f"steered after layer {a}, at layer {b}: {v:.4f}" for b, v in enumerate(row)]
            for a, row in zip(result.layers, rows, strict=True)
        ],
        low=min(low, 0.9),
        unit="cosine similarity",
        row_title="steered after layer",
        column_title="layer",
        title="How like the plain stream the steered one is",
        percent=False,
    ).figure()


@table.register(Convergence)
def _convergence_table(result: Convergence, width: int = WIDTH) -> "RenderableType":
    out = plain()
    for name in ("steered after layer", "cosine there", "at the end", "absorbed after"):
        out.add_column(name, justify="right")
    for layer, row in zip(result.layers, result.cosines, strict=True):
        depth = result.depth(layer)
        after = "never" if depth is None else f"{depth} layer{'s' * (depth != 1)}"
        out.add_row(str(layer), f"{row[layer]:.3f}", f"{row[-1]:.3f}", after)
    title = f"a direction times {result.strength:g}\n{one_line(result.prompt, width - 4)}"
    return titled(title, out, f"{result.absorbed:.0%} of the layers' steering is absorbed")


def knockout_page(result: AblationResult, more: Sequence[Section] = ()) -> Page:
    """One knockout."""
    prompt = one_line("".join(result.contrast.tokens))
    first = Section(f"{result.spec}", f"On {prompt}: {change_in_words(result)}.", plot(result))
    return f"Attention knockout · {result.contrast.model_id}", KNOCKOUT, [first, *more]


def steer_page(result: SteeringResult | None, curve: DoseResponseCurve | None, name: str) -> Page:
    """Steering at one dose, at several, or both."""
    sections = list[Section]()
    if result is not None:
        prompt = one_line("".join(result.contrast.tokens))
        words = f"On {prompt}: {change_in_words(result)}."
        sections.append(Section(str(result.spec), words, plot(result)))
    if curve is not None:
        words = f"On {one_line(curve.sample_id)}, dose by dose."
        sections.append(Section("Dose and response", words, plot(curve)))
    return f"Attention steering · {name}", STEER, sections
