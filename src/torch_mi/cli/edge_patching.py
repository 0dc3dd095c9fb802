# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi edges`."""

from enum import StrEnum
from typing import Annotated

from typer import Option

from torch_mi.cli import options
from torch_mi.cli.patch import Clean, Corrupted, Other, Target
from torch_mi.cli.session import Session

SIZES = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Slope(StrEnum):
    """Where gradients are taken."""

    gradient = "gradient"
    integrated = "integrated"


def edges(  # noqa: PLR0913 - the options are the interface
    clean: Clean,
    corrupted: Corrupted,
    *,
    model: options.Model = "demo",
    size: Annotated[
        int, Option("--size", metavar="N", min=1, help="Edges of the circuit that is shown.")
    ] = 20,
    method: Annotated[
        Slope,
        Option(
            "--method",
            metavar="METHOD",
            help="gradient: that of CLEAN; integrated: the mean on the way to CORRUPTED.",
        ),
    ] = Slope.integrated,
    target: Target = None,
    other: Other = None,
    json: options.Json = None,
    html: options.Html = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    adapter: options.Adapter = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Which part listens to which, and the few edges that carry the answer.

    [bold]torch-mi edges "The capital of France is" "The capital of Italy is"[/]
    """
    session = Session(json, html, quiet=quiet, debug=debug)
    loaded = session.load(model, device, dtype, seed, adapter)
    from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
    from torch_mi.analysis.circuits import faithfulness, greedy_circuit  # noqa: PLC0415
    from torch_mi.analysis.edge_patching import find_edges  # noqa: PLC0415
    from torch_mi.hooks.point import HookPoint  # noqa: PLC0415
    from torch_mi.results import spoken  # noqa: PLC0415
    from torch_mi.show.circuits import edges_page  # noqa: PLC0415
    from torch_mi.sweeps.metrics import logit_diff  # noqa: PLC0415

    session.weigh(loaded, clean, HookPoint.AttnResult, HookPoint.AttnQIn)
    # without words of the user's, what each of the prompts is answered with
    said = [loaded.forward(p).output[0, -1].argmax() for p in (clean, corrupted)]
    metric = logit_diff(
        target or spoken(loaded, int(said[0])), other or spoken(loaded, int(said[1]))
    )
    with session.busy("scoring edges"):
        found = find_edges(loaded, clean, corrupted, metric=metric, method=method.value)
    circuit = greedy_circuit(found, min(size, len(found)))
    sizes = [*sorted({n for n in (*SIZES, size) if n < len(found)}), len(found)]
    circuits = {str(n): greedy_circuit(found, n) for n in sizes}
    with session.busy("running circuits"):
        scored = faithfulness(loaded, clean, corrupted, circuits, metric=metric)
    results = (found, circuit, scored)
    names = ("edges", "circuit", "faithfulness")
    session.write_json({n: r.to_dict() for n, r in zip(names, results, strict=True)})
    if html is not None:
        session.write_page(*edges_page(*results))
    for result in results:
        session.print(show.table(result, session.out.width))
