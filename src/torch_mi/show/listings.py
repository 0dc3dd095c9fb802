# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tables of what a model has: tokens, hooks, weights; and of what a machine has."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from torch_mi.analysis.anatomy import Anatomy
from torch_mi.model import MIModel
from torch_mi.show.labels import label
from torch_mi.show.tables import WIDTH, plain, table, titled

if TYPE_CHECKING:
    from rich.console import RenderableType


def token_table(rows: Sequence[Mapping[str, object]], model_id: str) -> "RenderableType":
    """The tokens of a text."""
    from rich.text import Text  # noqa: PLC0415

    out = plain()
    out.add_column("position", justify="right")
    out.add_column("id", justify="right")
    out.add_column("token")
    out.add_column("characters")
    for row in rows:
        style = "dim" if row["special"] else ""
        token = Text(label(str(row["token"]), 40), style=style or "cyan")
        where = "added" if row["special"] else f"{row['start']} … {row['end']}"
        out.add_row(str(row["position"]), str(row["token_id"]), token, where, style=style)
    return titled(f"{len(rows)} tokens · {model_id}", out)


def hook_table(model: MIModel) -> "RenderableType":
    """Every kind of place in a model."""
    out = plain()
    out.add_column("name", no_wrap=True, style="cyan")
    out.add_column("shape", style="dim")
    out.add_column("meaning")
    shapes = {hook.point: (hook, shape) for hook, shape in model.hooks.items()}
    for point, (_, shape) in shapes.items():
        named = [
            axis if isinstance(size, str) else f"{axis}={size}"
            for axis, size in zip(point.axes, shape, strict=True)
            if axis != "one"
        ]
        out.add_row(str(point), " ".join(named), point.meaning)
    title = f"{len(model.hooks)} hooks · {model.origin.model_id} · {model.num_layers} layers"
    return titled(title, out, f"* is a layer, 0 … {model.num_layers - 1}; written so, every layer")


@table.register(Anatomy)
def _anatomy(result: Anatomy, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    head = Text.assemble(
        (result.model_id, "bold"),
        f" · {result.family} · {result.n_parameters:,} parameters · {result.dtype}"
        f" · fingerprint {result.fingerprint}",
    )
    return Group(head, _config(result.config), _weights(result))


def _config(config: Mapping[str, object]) -> "RenderableType":
    out = plain()
    out.add_column("field", style="cyan", no_wrap=True)
    out.add_column("value")
    for name, value in config.items():
        out.add_row(name, _value(value))
    return titled("configuration", out)


def _value(value: object) -> str:
    """A field of a configuration; what is the same in every layer is written once."""
    if isinstance(value, list):
        items = [_value(item) for item in cast("list[object]", value)]
        return f"{items[0]} (every layer)" if len(set(items)) == 1 else ", ".join(items)
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return ", ".join(f"{name} {_value(inside)}" for name, inside in items)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def _weights(result: Anatomy) -> "RenderableType":
    out = plain()
    out.add_column("name", style="cyan", no_wrap=True)
    out.add_column("shape", no_wrap=True)
    out.add_column("parameters", justify="right")
    out.add_column("typical entry, by layer", no_wrap=True)
    for kind, weights in result.kinds().items():
        sizes = [f"{weight.rms:.3g}" for weight in weights]
        spread = sizes[0] if len(sizes) == 1 else f"{sizes[0]} … {sizes[-1]}"
        first = weights[0]
        count = len(weights) * _count(first.shape)
        out.add_row(kind, " × ".join(map(str, first.shape)), f"{count:,}", spread)
    return titled("weights", out)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
