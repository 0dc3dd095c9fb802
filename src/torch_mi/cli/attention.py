# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi attention`."""

from typing import Annotated

from typer import Option

from torch_mi.cli import options
from torch_mi.cli.session import Session


def attention(  # noqa: PLR0913 - the options are the interface
    prompt: options.Prompts,
    *,
    model: options.Model = "demo",
    layer: Annotated[
        list[int] | None,
        Option("--layer", metavar="N", help="A layer; may be given again. All of them, if none."),
    ] = None,
    head: Annotated[
        list[int] | None,
        Option("--head", metavar="N", help="A head; may be given again. All of them, if none."),
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
    """Where each head looks.

    [bold]torch-mi attention "When Mary and John went to the store, John gave" --layer 3[/]
    """
    session = Session(json, html, quiet=quiet, debug=debug)
    loaded = session.load(model, device, dtype, seed, adapter)
    from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
    from torch_mi.analysis.attention import attentions  # noqa: PLC0415
    from torch_mi.hooks.point import HookPoint  # noqa: PLC0415

    session.weigh(loaded, prompt, HookPoint.AttnPattern)
    with session.busy("reading the heads"):
        results = attentions(loaded, prompt, layers=layer or None, heads=head or None)
    one = results[0].to_dict() if len(results) == 1 else None
    session.write_json(one or {"results": [result.to_dict() for result in results]})
    if html is not None:
        from torch_mi.show.patterns import attention_page  # noqa: PLC0415

        session.write_page(*attention_page(results))
    for result in results:
        session.print(show.table(result, session.out.width))
