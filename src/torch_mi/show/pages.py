# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the pages of each verb say."""

from collections.abc import Sequence

from torch_mi.analysis.lens import LogitLensResult
from torch_mi.results import format_probability
from torch_mi.show.labels import label, one_line
from torch_mi.show.page import Section
from torch_mi.show.plots import plot

Page = tuple[str, str, list[Section]]

LENS = (
    "Each layer of a language model adds something to a running sum, the residual stream. The "
    "logit lens reads that sum early: it applies the model's last step (final norm and "
    "unembedding) after every layer, and so shows what the model would say if it stopped there. "
    "The top row is what it does say. Point at a cell for all its candidates."
)


def lens_page(results: Sequence[LogitLensResult]) -> Page:
    """Logit lenses, one below the other."""
    sections = [
        Section(one_line(result.prompt), lens_summary(result), plot(result)) for result in results
    ]
    return f"Logit lens · {results[0].model_id}", LENS, sections


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
