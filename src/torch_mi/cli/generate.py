# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi generate`."""

from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from typer import Option

from torch_mi.cli import options
from torch_mi.cli.session import Session

if TYPE_CHECKING:
    from torch_mi.generate import GenerationResult


Count = Annotated[
    int, Option("--max-new-tokens", "-n", metavar="N", help="How many tokens at most.")
]
Temperature = Annotated[
    float, Option("--temperature", "-t", metavar="T", help="0 always takes the likeliest.")
]
TopK = Annotated[int | None, Option("--top-k", metavar="K", help="Draw among the K likeliest.")]
TopP = Annotated[
    float | None,
    Option("--top-p", metavar="P", help="Draw among the likeliest that make up P together."),
]


def generate(  # noqa: PLR0913 - the options are the interface
    prompt: options.Prompt,
    *,
    model: options.Model = "demo",
    max_new_tokens: Count = 20,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    json: options.Json = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    adapter: options.Adapter = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Continue a text; it appears as it is made.

    [bold]torch-mi generate "The capital of France is" -n 10[/]
    """
    session = Session(json, quiet=quiet, debug=debug)
    loaded = session.load(model, device, dtype, seed, adapter)
    session.weigh(loaded, prompt, more_tokens=max_new_tokens)
    if json is not None:
        with session.busy("writing"):
            result = loaded.generate(
                prompt,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
            )
        return _written(session, prompt, result)
    from torch_mi.generate import stream  # noqa: PLC0415 - `--help` must not pay for torch

    pieces = stream(
        loaded,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    return session.stream(prompt, pieces)


def _written(session: Session, prompt: str, result: "GenerationResult") -> None:
    """The whole text in a file, and shown."""
    session.write_json(result.to_dict())
    session.print(Text(prompt, style="dim") + Text(result.text, style="not dim"))
