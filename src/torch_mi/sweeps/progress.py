# SPDX-License-Identifier: MIT OR Apache-2.0
"""A progress bar, where someone watches."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

Advance = Callable[[int], None]


@contextmanager
def bar(total: int | None, wanted: bool | None) -> Generator[Advance]:  # noqa: FBT001 - of the caller's
    """A function that is told of finished cells; a bar on a terminal, unless told otherwise."""
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - only where a bar is drawn
    from rich.errors import LiveError  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn  # noqa: PLC0415

    columns = ("sweep", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    try:
        progress.start()
    except LiveError:
        # the caller already shows that something is going on
        yield lambda _: None
        return
    task = progress.add_task("sweep", total=total)
    try:
        yield lambda cells: progress.advance(task, cells)
    finally:
        progress.stop()
