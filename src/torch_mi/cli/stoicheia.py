# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi stoicheia inference`, `analysis`, `train` and `download`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, Typer

from torch_mi.cli import options
from torch_mi.cli.session import Session, check_writable
from torch_mi.errors import ModelError

if TYPE_CHECKING:
    from torch_mi.analysis.stoicheia.networks import Network

app = Typer(name="stoicheia", no_args_is_help=True, rich_markup_mode="rich")


class Task(StrEnum):
    """What a network was made for."""

    second_argmax = "2nd_argmax"
    argmax = "argmax"
    argmedian = "argmedian"
    argoutlier = "argoutlier"
    median = "median"
    longest_cycle = "longest_cycle"


class Without(StrEnum):
    """How a neuron is taken away."""

    zero = "zero"
    mean = "mean"
    resample = "resample"


Weights = Annotated[
    str,
    Option(
        "--weights",
        "-w",
        metavar="FILE",
        help="A .safetensors, .pth or .pkl file, or handcrafted:N.",
    ),
]
TaskOption = Annotated[
    Task | None,
    Option("--task", "-t", metavar="TASK", help="What it answers, if its name does not say."),
]
Hidden = Annotated[
    int | None, Option("--hidden-size", metavar="H", help="To be checked against the weights.")
]
Length = Annotated[
    int | None,
    Option("--seq-len", metavar="N", help="Inputs; median's networks do not tell, others must."),
]


@app.command()
def inference(  # noqa: PLR0913 - the options are the interface
    weights: Weights,
    *,
    task: TaskOption = None,
    hidden_size: Hidden = None,
    seq_len: Length = None,
    samples: Annotated[int, Option("--samples", metavar="N", help="Inputs of N(0, 1).")] = 1000,
    json: options.Json = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """What a tiny network answers to random inputs, and how often it is right.

    [bold]torch-mi stoicheia inference -w handcrafted:10[/]
    """
    session = Session(json, quiet=quiet, debug=debug)
    with session.busy(f"running {weights}"):
        network = _load(weights, task, hidden_size, seq_len)
        from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
        from torch_mi.analysis.stoicheia.answers import answer  # noqa: PLC0415

        found = answer(network, samples, seed=seed or 0)
    session.write_json(found.to_dict())
    session.print(show.table(found, session.out.width))


@app.command()
def analysis(  # noqa: PLR0913 - the options are the interface
    weights: Weights,
    *,
    task: TaskOption = None,
    hidden_size: Hidden = None,
    seq_len: Length = None,
    samples: Annotated[
        int, Option("--samples", metavar="N", help="Inputs for regions and ablation.")
    ] = 100_000,
    probes: Annotated[
        int, Option("--probes", metavar="N", help="Inputs for roles and surprise.")
    ] = 20_000,
    method: Annotated[
        Without, Option("--method", metavar="HOW", help="Neurons at zero, mean or resample.")
    ] = Without.zero,
    json: options.Json = None,
    html: options.Html = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Everything about a tiny network: regions, ablations, roles, surprise in bits.

    Of a transformer: its lookup tables, and its answers to every input there is.

    [bold]torch-mi stoicheia analysis -w handcrafted:3[/]
    """
    session = Session(json, html, quiet=quiet, debug=debug)
    with session.busy(f"taking {weights} apart"):
        network = _load(weights, task, hidden_size, seq_len)
        from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
        from torch_mi.analysis.stoicheia.answers import anatomy  # noqa: PLC0415
        from torch_mi.analysis.stoicheia.networks import StoicheiaRnn  # noqa: PLC0415
        from torch_mi.analysis.stoicheia.report import analyse  # noqa: PLC0415
        from torch_mi.show.stoicheia_plots import report_page  # noqa: PLC0415

        if isinstance(network, StoicheiaRnn):
            how = method.value
            found = analyse(network, samples, probes=probes, method=how, seed=seed or 0)
        else:
            found = anatomy(network)
    session.write_json(found.to_dict())
    if html is not None:
        session.write_page(*report_page(found))
    session.print(show.table(found, session.out.width))


@app.command()
def train(  # noqa: PLR0913 - the options are the interface
    task: Annotated[Task, Option("--task", "-t", metavar="TASK", help="What it is to answer.")],
    hidden_size: Annotated[int, Option("--hidden-size", metavar="H", help="Its width.")],
    seq_len: Annotated[int, Option("--seq-len", metavar="N", help="How many inputs it reads.")],
    output: Annotated[
        Path, Option("--output", "-o", metavar="FILE", help="Where to write it (.safetensors).")
    ],
    *,
    steps: Annotated[int, Option("--steps", metavar="N", help="Steps of training.")] = 3000,
    batch: Annotated[int, Option("--batch", metavar="N", help="Inputs at each step.")] = 1024,
    rate: Annotated[float, Option("--rate", metavar="X", help="Adam's learning rate.")] = 0.01,
    json: options.Json = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a network of any size for any of the tasks.

    [bold]torch-mi stoicheia train -t 2nd_argmax --hidden-size 4 --seq-len 2 -o m42.safetensors[/]
    """
    session = Session(json, quiet=quiet, debug=debug)
    if output.suffix != ".safetensors":
        raise ModelError(f"--output {output}: networks are written as .safetensors")
    check_writable(output)
    with session.busy(f"training for {steps:,} steps"):
        from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
        from torch_mi.analysis.stoicheia.training import train as descend  # noqa: PLC0415

        size = (hidden_size, seq_len)
        found = descend(task.value, *size, steps=steps, batch=batch, rate=rate, seed=seed or 0)
    session.wrote(found.network.save(output))
    session.write_json(found.to_dict())
    session.print(show.table(found, session.out.width))


@app.command()
def download(
    name: Annotated[
        str,
        Argument(metavar="NAME", help="As 2nd_argmax_16_10 (the best seed), in full, or blog."),
    ],
    *,
    folder: Annotated[
        Path | None, Option("--folder", metavar="DIR", help="Where to; a cache unless given.")
    ] = None,
    quiet: options.Quiet = False,
    json: options.Json = None,
    debug: options.Debug = False,
) -> None:
    """Fetch a network of the zoo.

    [bold]torch-mi stoicheia download 2nd_argmax_16_10[/]
    """
    session = Session(json, quiet=quiet, debug=debug)
    with session.busy(f"fetching {name}"):
        from torch_mi.analysis.stoicheia.zoo import download as fetch  # noqa: PLC0415

        path = fetch(name, folder)
    session.write_json({"name": name, "path": str(path)})
    session.say(str(path))


def _load(weights: str, task: Task | None, hidden: int | None, length: int | None) -> "Network":
    """The network that `--weights` names."""
    from torch_mi.analysis.stoicheia.handcrafted import handcrafted  # noqa: PLC0415
    from torch_mi.analysis.stoicheia.zoo import check_size, load  # noqa: PLC0415

    kind, _, n = weights.partition(":")
    if kind == "handcrafted" and n.isdecimal():
        network: Network = handcrafted(int(n))
    else:
        network = load(weights, None if task is None else task.value, length)
    check_size(network, hidden, length, "the command line")
    return network
