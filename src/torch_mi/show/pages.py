# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the pages of each verb say."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch_mi.analysis.anatomy import Anatomy
from torch_mi.analysis.attribution import Attribution
from torch_mi.analysis.heads import SCORES, HeadScores
from torch_mi.analysis.lens import LogitLensResult
from torch_mi.results import format_probability
from torch_mi.show.heat import Heat
from torch_mi.show.labels import label, one_line
from torch_mi.show.page import Section
from torch_mi.show.plots import plot
from torch_mi.sweeps.grid import Grid

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Page = tuple[str, str, list[Section]]

LENS = (
    "Each layer of a language model adds something to a running sum, the residual stream. The "
    "logit lens reads that sum early: it applies the model's last step (final norm and "
    "unembedding) after every layer, and so shows what the model would say if it stopped there."
)
LENS_PICTURE = "The top row is what it does say. Point at a cell for all its candidates."


def lens_page(results: Sequence[LogitLensResult]) -> Page:
    """Logit lenses, one below the other."""
    sections = [
        Section(one_line(result.prompt), lens_summary(result), plot(result)) for result in results
    ]
    return f"Logit lens · {results[0].model_id}", f"{LENS} {LENS_PICTURE}", sections


def lens_summary(result: LogitLensResult) -> str:
    """What a lens shows, in a sentence or two."""
    readings = result.at()
    final = readings[-1].predictions[0]
    first = result.first_appearance(final.token_id)
    said = (
        f"After `{label(result.tokens[readings[0].position])}` the model says "
        f"`{label(final.token)}` ({format_probability(final.probability)}). "
    )
    lead = result.layers[-1] if first is None else first
    steady = next(
        layer
        for layer in result.layers
        if all(r.predictions[0].token_id == final.token_id for r in readings if r.layer >= layer)
    )
    said += f"That token first leads in layer {lead}" + (
        "." if steady == lead else f" and stays in front from layer {steady} on."
    )
    return said.replace("layer -1", "the embedding")


def patch_page(grid: Grid) -> Page:
    """One patching grid."""
    clean, corrupted = str(grid.options["clean"]), str(grid.options["corrupted"])
    lead = (
        f"The prompt {one_line(corrupted)} was run again and again, each time with one activation "
        f"taken from the run of {one_line(clean)}. Where that brings the first prompt's score "
        "back, the model carries what makes the difference."
    )
    if "method" in grid.options:
        lead = (
            f"What would the prompt {one_line(corrupted)} score with one activation taken from the "
            f"run of {one_line(clean)}? Estimated for all activations at once: the change of the "
            "activation times the slope of the score."
        )
    words = f"By itself the second prompt scores {grid.baseline:.4g}"
    words += "." if grid.reference is None else f", the first {grid.reference:.4g}."
    return "Activation patching", lead, [Section(grid.title, words, plot(grid))]


def attribution_page(found: Attribution) -> Page:
    """The shares of one logit."""
    lead = (
        "What a model says is a sum: of the embedding, of every head's output and of every MLP's. "
        "Each term's share of a token's logit can be read off (the final norm's denominator is "
        "held at its value)."
    )
    words = f"After {one_line(found.prompt)} the shares add up to {found.logit:.3f}."
    return (
        f"Direct logit attribution · {found.model_id}",
        lead,
        [Section(f"The logit of {label(found.target)}", words, plot(found))],
    )


def heads_page(found: HeadScores) -> Page:
    """The scores of all heads."""
    layer, head, score = found.best(1)[0]
    kind = found.kind.replace("_", "-")
    lead = f"Random tokens were shown twice. What a {kind} head is scored by: {SCORES[found.kind]}."
    words = (
        f"Highest: head {head} of layer {layer}, {score:.3f}. Chance would score "
        f"{found.chance:.3f}."
    )
    return (
        f"Attention heads · {found.model_id}",
        lead,
        [Section(f"{kind} heads", words, plot(found))],
    )


def anatomy_page(result: Anatomy) -> Page:
    """What a model is made of."""
    lead = f"{result.family}, {result.n_parameters:,} parameters, {result.dtype}."
    words = (
        "How large a typical entry of each weight is (the root of its mean square), in each layer. "
        "Layers that stand out, or weights that are all zero, are worth a look."
    )
    return (
        f"What {result.model_id} is made of",
        lead,
        [Section("Weights", words, plot(result), "model.backend.named_parameters()")],
    )


@plot.register(Anatomy)
def _anatomy(result: Anatomy) -> "Figure":
    """Layers upwards, kinds of weight across."""
    kinds = {k: w for k, w in result.kinds().items() if w[0].layer is not None}
    layers = sorted({w.layer for ws in kinds.values() for w in ws if w.layer is not None})
    found = {(w.kind, w.layer): w for ws in kinds.values() for w in ws}
    cells = [[found.get((kind, layer)) for kind in kinds] for layer in layers]
    values = [[None if w is None else w.rms for w in row] for row in cells]
    return Heat(
        values=values,
        rows=[str(layer) for layer in layers],
        columns=[kind.split("*.")[-1].removesuffix(".weight") for kind in kinds],
        words=[["" if w is None else f"{w.rms:.2g}" for w in row] for row in cells],
        hover=[
            ["" if w is None else f"{w.name}<br>{list(w.shape)}<br>rms {w.rms:.4g}" for w in row]
            for row in cells
        ],
        high=max((v for row in values for v in row if v is not None), default=1.0),
        unit="rms",
        column_title="weight",
        title=f"The root mean square of each weight of {result.model_id}",
        percent=False,
    ).figure()
