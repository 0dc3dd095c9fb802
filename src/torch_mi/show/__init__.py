# SPDX-License-Identifier: MIT OR Apache-2.0
"""How results look: tables in a terminal, figures, notebook cells, pages.

`text`, `plot` and `html` take any result; `page.write` puts pictures and words on one page.
"""

from torch_mi.show import (
    causal,
    cells,
    checks,
    circuits,
    compatibility,
    evaluations,
    geometry,
    head_lens,
    listings,
    memory,
    movers,
    pages,
    patterns,
    residuals,
    states,
    stoicheia,
    stoicheia_plots,
    sweeps,
    tour,
    tour_attention,
    tour_states,
    tracing,
)
from torch_mi.show.notebook import html
from torch_mi.show.plots import attention, plot
from torch_mi.show.tables import table, text

WHERE_MORE_IS_DRAWN = (
    causal,
    cells,
    checks,
    circuits,
    compatibility,
    evaluations,
    geometry,
    head_lens,
    listings,
    memory,
    movers,
    pages,
    patterns,
    residuals,
    stoicheia,
    stoicheia_plots,
    states,
    sweeps,
    tour,
    tour_attention,
    tour_states,
    tracing,
)
"""Modules that teach `table`, `plot` and `html` more kinds of result."""

__all__ = ["attention", "html", "plot", "table", "text"]
