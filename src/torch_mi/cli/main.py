# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi VERB …`: the door, and what is said when something goes wrong."""

import signal
import sys
from io import TextIOWrapper
from types import TracebackType
from typing import Annotated, Protocol, cast, runtime_checkable

import typer
from rich.console import Console
from typer.main import get_command

from torch_mi.cli.attention import attention
from torch_mi.cli.attribute import attribute
from torch_mi.cli.check import check
from torch_mi.cli.demo import demo
from torch_mi.cli.doctor import doctor
from torch_mi.cli.download import download
from torch_mi.cli.edge_patching import edges
from torch_mi.cli.generate import generate
from torch_mi.cli.heads import heads
from torch_mi.cli.hooks import hooks
from torch_mi.cli.inspect import inspect
from torch_mi.cli.knockout import knockout
from torch_mi.cli.logit_lens import logit_lens
from torch_mi.cli.patch import patch
from torch_mi.cli.session import REPORT
from torch_mi.cli.state import state
from torch_mi.cli.steer import steer
from torch_mi.cli.stoicheia import app as stoicheia
from torch_mi.cli.tokens import tokens
from torch_mi.cli.trace import trace
from torch_mi.cli.verify import verify
from torch_mi.errors import MIError

USER_ERROR, OUR_BUG, INTERRUPTED = 2, 1, 128 + signal.SIGINT
REPORT_AT = "please report it, with what `--debug` prints"


@runtime_checkable
class Complaint(Protocol):
    """What is wrong with the arguments, as typer says it."""

    ctx: typer.Context | None

    def format_message(self) -> str: ...


# the class of typer's complaints: its own copy of click's, or click's itself, by its version
WrongUse = cast("type[Exception]", typer.BadParameter.__base__)

app = typer.Typer(
    name="torch-mi",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]torch-mi demo[/].",
)


def _version(wanted: bool | None) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        from torch_mi import __version__  # noqa: PLC0415

        typer.echo(f"torch-mi {__version__}")
        raise typer.Exit


@app.callback()
def torch_mi(
    *,
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = None,
) -> None:
    """Look inside language models: every activation, exactly."""


VERBS = (
    demo,
    logit_lens,
    patch,
    trace,
    knockout,
    steer,
    state,
    attribute,
    attention,
    heads,
    edges,
    generate,
    tokens,
    hooks,
    inspect,
    verify,
    check,
    download,
    doctor,
)
for verb in VERBS:
    app.command(verb.__name__.replace("_", "-"), no_args_is_help=False)(verb)
app.command("lens", hidden=True)(logit_lens)
app.add_typer(stoicheia, help="Tiny networks of AlgZoo, understood completely.")


def main() -> None:
    """Run one verb; errors become one line and an exit code."""
    sys.excepthook = _last_words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # for terminals that lack a letter
    try:
        command = get_command(app)  # app() would put typer's excepthook in place of ours
        code = cast("int | None", command(prog_name="torch-mi", standalone_mode=False))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except WrongUse as wrong:
        _say(_usage(cast("Complaint", wrong)))
        code = USER_ERROR
    except MIError as error:
        if REPORT.debug:
            raise
        _say(str(error))
        code = USER_ERROR
    if code == INTERRUPTED:
        saved = ", ".join(map(str, REPORT.saved)) or "nothing"
        _say(f"stopped; saved {saved}", "interrupted")
    sys.exit(code or 0)


def _usage(wrong: Complaint) -> str:
    """What is wrong with the arguments, and where to read about them."""
    message = wrong.format_message().rstrip(".").replace("\n", " ").replace("Value error, ", "")
    where = "torch-mi" if wrong.ctx is None else wrong.ctx.command_path
    return f"{message} (see {where} --help)"


def _say(message: str, kind: str = "error") -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]{kind}:[/] ", end="")
    console.print(message, markup=False)


def _last_words(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """An error nobody expected: a line, or with `--debug` the traceback."""
    if REPORT.debug:
        sys.__excepthook__(kind, error, trace)
    elif issubclass(kind, KeyboardInterrupt):
        _say("stopped; saved nothing", "interrupted")
    else:
        _say(f"{kind.__name__}: {error} — this is a bug in torch-mi; {REPORT_AT}", "bug")
