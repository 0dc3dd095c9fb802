# SPDX-License-Identifier: MIT OR Apache-2.0
"""The options that verbs share, each described once."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


class Dtype(StrEnum):
    """Number formats a model can be held in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"
    auto = "auto"


RUN = "How it runs"
OUT = "What it writes"

Model = Annotated[
    str,
    Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A packaged model ([bold]demo[/], [bold]demo-rwkv[/]), a folder, or a Hub id.",
    ),
]
ModelArgument = Annotated[
    str, Argument(metavar="[MODEL]", help="A packaged model, a folder, or a Hub id.")
]
Prompt = Annotated[str, Argument(metavar="PROMPT", help="The text.")]
Prompts = Annotated[list[str], Argument(metavar="PROMPT", help="One text or several.")]
Device = Annotated[
    str | None,
    Option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, mps; the first GPU if there is one.",
        rich_help_panel=RUN,
    ),
]
DtypeOption = Annotated[
    Dtype,
    Option(
        "--dtype",
        metavar="DTYPE",
        help="float32, bfloat16, float16, float64, or auto: the model's own.",
        rich_help_panel=RUN,
    ),
]
Adapter = Annotated[
    str | None,
    Option(
        "--adapter",
        metavar="ADAPTER",
        help="A LoRA to merge into the model: a folder or a Hub id.",
        rich_help_panel=RUN,
    ),
]
Seed = Annotated[
    int | None,
    Option("--seed", metavar="N", help="Makes chance repeatable.", rich_help_panel=RUN),
]
Quiet = Annotated[
    bool,
    Option(
        "--quiet",
        "-q",
        help="No progress, no remarks; and no table where a file is written.",
        rich_help_panel=RUN,
    ),
]
Debug = Annotated[bool, Option("--debug", help="Show tracebacks of errors.", rich_help_panel=RUN)]
Json = Annotated[
    Path | None,
    Option("--json", metavar="FILE", help="Write the result as JSON.", rich_help_panel=OUT),
]
Html = Annotated[
    Path | None,
    Option(
        "--html",
        metavar="FILE",
        help="Write a page with pictures that opens without a network.",
        rich_help_panel=OUT,
    ),
]
