# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi attribute`."""

from typing import Annotated

from typer import Option

from torch_mi.cli import options
from torch_mi.cli.session import Session


def attribute(  # noqa: PLR0913 - the options are the interface
    prompt: options.Prompt,
    *,
    model: options.Model = "demo",
    target: Annotated[
        str | None,
        Option("--target", metavar="TOKEN", help="A token; what the model says, if none."),
    ] = None,
    versus: Annotated[
        str | None, Option("--versus", metavar="TOKEN", help="Explain the lead over this token.")
    ] = None,
    json: options.Json = None,
    html: options.Html = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    adapter: options.Adapter = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """What each head and MLP adds to the logit of a token.

    [bold]torch-mi attribute "The capital of France is" --versus " Rome"[/]
    """
    session = Session(json, html, quiet=quiet, debug=debug)
    loaded = session.load(model, device, dtype, seed, adapter)
    from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
    from torch_mi.analysis import attribution  # noqa: PLC0415
    from torch_mi.hooks.point import HookPoint  # noqa: PLC0415
    from torch_mi.show.pages import attribution_page  # noqa: PLC0415

    session.weigh(loaded, prompt, HookPoint.AttnResult, HookPoint.ResidPost)
    answer = loaded.forward(prompt).output[0, -1].argmax() if target is None else target
    word = answer if isinstance(answer, str) else int(answer)
    with session.busy("adding up"):
        found = attribution.attribute(loaded, prompt, target=word, versus=versus)
    session.write_json(found.to_dict())
    if html is not None:
        session.write_page(*attribution_page(found))
    session.print(show.table(found, session.out.width))
