# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi tokens`."""

from torch_mi.cli import options
from torch_mi.cli.session import Session


def tokens(
    prompt: options.Prompt,
    *,
    model: options.Model = "demo",
    json: options.Json = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """How a model's tokenizer cuts a text: pieces, ids, and where each lies.

    [bold]torch-mi tokens "When Mary and John went to the store"[/]
    """
    session = Session(json, quiet=quiet, debug=debug)
    with session.busy(f"loading the tokenizer of {model}"):
        from torch_mi.loading import Request, locate, tokenizer_of  # noqa: PLC0415 - torch
        from torch_mi.show.listings import token_table  # noqa: PLC0415

        source = locate(model, Request())
        tokenizer = tokenizer_of(source)
    found = tokenizer.encode_with_offsets(prompt)
    rows = [
        {
            "position": i,
            "token_id": token_id,
            "token": tokenizer.decode_token(token_id),
            "start": found.offsets[i][0],
            "end": found.offsets[i][1],
            "special": tokenizer.is_special(token_id),
        }
        for i, token_id in enumerate(found.ids)
    ]
    session.write_json({"model_id": source.model_id, "prompt": prompt, "tokens": rows})
    session.print(token_table(rows, source.model_id))
