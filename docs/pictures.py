# SPDX-License-Identifier: MIT OR Apache-2.0
"""The README's pictures, drawn by the library itself: `python -m docs.pictures` writes them.

Each is drawn twice, for light and for dark screens. Needs kaleido and a Chromium.
"""

from pathlib import Path
from typing import Any

import torch_mi as mi
from torch_mi.analysis.lens import logit_lens
from torch_mi.show.heat import DARK_SCALES
from torch_mi.storage import write_text

FOLDER = Path(__file__).parent / "pictures"
PROMPT = "The capital of France is"
CLEAN, CORRUPTED = PROMPT, "The capital of Italy is"
WIDTH = 760
PAPER, INK = "#0d1117", "#e6edf3"
"""A dark screen's."""


def dark(figure: Any) -> Any:
    """The same figure for a dark screen."""
    kind = figure.data[0].meta
    stops = DARK_SCALES[kind]
    scale = [[i / (len(stops) - 1), colour] for i, colour in enumerate(stops)]
    figure.update_traces(colorscale=scale)
    return figure.update_layout(paper_bgcolor=PAPER, font_color=INK)


def draw(figure: Any, name: str) -> None:
    """Write a figure as two SVG files."""
    figure.update_layout(width=WIDTH, updatemenus=[], margin={"t": 50, "b": 60})
    for shade, drawn in (("light", figure), ("dark", dark(type(figure)(figure)))):
        svg = drawn.to_image(format="svg").decode("utf-8")
        write_text(FOLDER / f"{name}-{shade}.svg", svg)


def main() -> None:
    """Every picture."""
    model = mi.MIModel.from_pretrained("demo", device="cpu")
    draw(logit_lens(model, PROMPT, position="all").plot(), "lens")
    grid = mi.patch(
        model, CLEAN, CORRUPTED, at="resid_pre", metric=mi.logit_diff(" Paris", " Rome")
    )
    figure: Any = grid.normalized().plot()
    figure.update_traces(colorbar_title_text="1 as the clean prompt")
    draw(figure, "patch")


if __name__ == "__main__":
    main()
