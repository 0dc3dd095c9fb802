# SPDX-License-Identifier: MIT OR Apache-2.0
"""What every verb needs: a console, a model, files that can be written, errors in one line."""

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from rich.console import Console

from torch_mi.cli.options import Dtype
from torch_mi.errors import FileError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from rich.console import RenderableType

    from torch_mi.model import MIModel
    from torch_mi.prompts import Prompt
    from torch_mi.show.page import Section

PIPE_CLOSED = 141
"""The exit code of a program whose reader went away (128 + SIGPIPE)."""


class Screen(Console):
    """A console that stops without a word when its reader goes away."""

    def on_broken_pipe(self) -> NoReturn:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED)


@dataclass
class Report:
    """What is known about this process, for its last words."""

    debug: bool = False
    saved: list[Path] = field(default_factory=list[Path])


REPORT = Report()


class Session:
    """One verb at work."""

    def __init__(
        self,
        json: Path | None = None,
        html: Path | None = None,
        *,
        quiet: bool = False,
        debug: bool = False,
    ) -> None:
        REPORT.debug = debug
        REPORT.saved.clear()
        self.out = Screen(highlight=False)
        self.notes = Screen(highlight=False, stderr=True)
        self.quiet, self._json, self._html = quiet, json, html
        self._started = time.monotonic()
        for path in (json, html):
            if path is not None:
                check_writable(path)
        if html is not None:
            from torch_mi.show.page import plotly_js  # noqa: PLC0415 - fails early without plotly

            plotly_js()

    def load(
        self,
        model: str,
        device: str | None,
        dtype: Dtype = Dtype.float32,
        seed: int | None = None,
        adapter: str | None = None,
    ) -> "MIModel":
        """The model that a verb looks at."""
        with self.busy(f"loading {model}"):
            import torch  # noqa: PLC0415 - `--help` must not pay for it

            from torch_mi.model import MIModel  # noqa: PLC0415

            if seed is not None:
                torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
            self.calm_hub()
            try:
                place = None if device is None else torch.device(device)
            except RuntimeError as cause:
                raise ModelError(f"--device {device!r} is not cpu, cuda, cuda:N or mps") from cause
            held = torch_dtype(dtype)
            loaded = MIModel.from_pretrained(model, device=place, dtype=held, adapter=adapter)
        if loaded.origin.assumed:
            self.remark(
                f"{loaded.origin.family!r} is no known family: {loaded.origin.assumed[0]} "
                "(torch-mi check says all that is assumed, torch-mi verify proves it)"
            )
        return loaded

    def weigh(self, model: "MIModel", prompt: "Prompt", *points: str, more_tokens: int = 0) -> None:
        """Say so, before a run that captures `points`, if there is not the memory for it."""
        from torch_mi.forecasting import shortage  # noqa: PLC0415 - needs torch
        from torch_mi.hooks.spec import HookSpec  # noqa: PLC0415

        if more_tokens > 0:
            from torch_mi.model import batch_of  # noqa: PLC0415 - torch loads late

            rows = batch_of(model, prompt).rows()
            prompt = [row + row[-1:] * more_tokens for row in rows]
        short = shortage(model, prompt, HookSpec().capture(*points), keep=more_tokens > 0)
        if short:
            self.remark(f"warning: {short.replace('load in bfloat16', 'use --dtype bfloat16')}")

    @contextmanager
    def busy(self, what: str) -> Generator[None]:
        """A spinner while something goes on, on a terminal."""
        if self.quiet or not self.notes.is_terminal:
            yield
            return
        with self.notes.status(f"[dim]{what} …[/]", spinner="dots"):
            yield

    def print(self, *what: "RenderableType") -> None:
        """Show a result, unless only the file was asked for."""
        if not (self.quiet and (self._json or self._html)):
            self.out.print(*what, sep="\n")

    def stream(self, prompt: str, pieces: "Iterator[str]") -> None:
        """Show a text as it is made, after its prompt."""
        first = next(pieces, "")  # where a wrong option is found out
        if not self.quiet:
            self.out.print(prompt, style="dim", end="", markup=False, soft_wrap=True)
        for piece in chain([first], pieces):
            self.out.print(piece, end="", markup=False, soft_wrap=True)
        self.out.print()

    def calm_hub(self) -> None:
        """Keep the Hub's progress bars away, if nobody is to be disturbed."""
        if self.quiet:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

    def remark(self, text: str) -> None:
        """Say something that is not part of the result."""
        if not self.quiet:
            self.notes.print(text, style="dim", markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print one line as it is, however long."""
        self.out.print(text, markup=False, soft_wrap=True)

    def write_json(self, data: Mapping[str, object]) -> None:
        """Write the result where `--json` says, if it does."""
        if self._json is None:
            return
        from torch_mi.storage import write_json  # noqa: PLC0415 - needs torch

        seconds = round(time.monotonic() - self._started, 3)
        self.wrote(write_json(self._json, {**data, "time_secs": seconds}))

    def write_page(self, title: str, lead: str, sections: "Sequence[Section]") -> None:
        """Write pictures and words where `--html` says, if it does."""
        if self._html is None:
            return
        from torch_mi.manifest import versions  # noqa: PLC0415 - needs torch
        from torch_mi.show import page  # noqa: PLC0415 - needs torch

        made_by = ", ".join(f"{name} {version}" for name, version in versions().items())
        command = f"torch-mi {shlex.join(sys.argv[1:])}"
        footer = f"Made by `{command}` with {made_by}."
        self.wrote(page.write(self._html, title, lead, sections, footer))

    def wrote(self, path: Path) -> None:
        """Note that a file was written."""
        REPORT.saved.append(path)
        self.remark(f"wrote {path}")


def check_writable(path: Path) -> None:
    """Make sure, before any work, that `path` can be written; makes the folders it lies in."""
    if path.is_dir():
        raise FileError(f"cannot write {path}: it is a folder; give a file name in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as cause:
        raise FileError(f"cannot write {path}: {cause.strerror}") from cause


def torch_dtype(name: Dtype) -> "torch.dtype | Literal['auto']":
    """The torch dtype that `--dtype` names."""
    import torch  # noqa: PLC0415 - `--help` must not pay for it

    held: dict[Dtype, torch.dtype | Literal["auto"]] = {
        Dtype.auto: "auto",
        Dtype.float32: torch.float32,
        Dtype.bfloat16: torch.bfloat16,
        Dtype.float16: torch.float16,
        Dtype.float64: torch.float64,
    }
    return held[name]
