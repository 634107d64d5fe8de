"""Show how far a job is: a bar in a terminal, a line for each finished unit in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeAlias

from i2am.flows.console.output import note
from i2am.storage.terminal_safe import visible


@dataclass(frozen=True, slots=True)
class Progress:
    """One step forward of a job.

    Attributes
    ----------
    stage
        What is being done, such as ``capture``.
    done, total
        Units finished and units in all; a unit is a sample or a file.
    what
        The unit that was finished; empty at the start of a stage.
    """

    stage: str
    done: int
    total: int
    what: str = ""


OnProgress: TypeAlias = Callable[[Progress], None]
"""Called from the thread that does the work; must return soon."""


_listener: ContextVar[OnProgress | None] = ContextVar("listener", default=None)
"""Who hears of progress; a context variable, because the parameters of a Prefect flow must be plain data."""


def report(event: Progress) -> None:
    """Tell the listener of this context, if there is one."""
    listener = _listener.get()
    if listener is not None:
        listener(event)


@contextmanager
def heard_by(listener: OnProgress) -> Iterator[None]:
    """Send every :func:`report` of the block to ``listener``, and on to the one before it."""
    before = _listener.get()

    def both(event: Progress) -> None:
        """Tell this listener, then the one outside."""
        listener(event)
        if before is not None:
            before(event)

    token = _listener.set(both)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def shown(quiet: bool = False) -> Iterator[None]:
    """Show the progress of the block on standard error.

    Parameters
    ----------
    quiet
        Show nothing.
    """
    if quiet:
        yield
    elif not sys.stderr.isatty():
        with heard_by(_log):
            yield
    else:
        with _bars() as show, heard_by(show):
            yield


def _log(event: Progress) -> None:
    if event.what:
        note(f"{event.stage} {event.done}/{event.total}: {event.what}")


@contextmanager
def _bars() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}", style="dim", markup=False),
    )
    with Bars(*columns, console=Console(stderr=True), transient=False) as bars:
        tasks = {}

        def show(event: Progress) -> None:
            """Move the bar of the event's stage."""
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(visible(event.stage), total=event.total, what="")
            what = "" if event.done == event.total else visible(event.what)
            bars.update(tasks[event.stage], completed=event.done, total=event.total, what=what)

        yield show
