"""Progress of a job, by :func:`emit`: a bar in a terminal, in a log a line for each finished unit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeAlias

from i2am.flows.console.output import log
from i2am.storage.terminal_safe import visible


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` samples or files of a stage; `what` was finished last, empty at the start."""

    stage: str
    done: int
    total: int
    what: str = ""


OnProgress: TypeAlias = Callable[[Progress], None]
"""Called from the thread that does the work; must return soon."""

_listener: ContextVar[OnProgress | None] = ContextVar("listener", default=None)
"""A context variable, because the parameters of a Prefect flow must be plain data."""


def emit(event: Progress) -> None:
    """Hand an event to the listeners of this context."""
    if (listener := _listener.get()) is not None:
        listener(event)


@contextmanager
def listening(listener: OnProgress) -> Iterator[None]:
    """Send every event of the block to `listener`, and on to the listener around it."""
    outer = _listener.get()

    def both(event: Progress) -> None:
        listener(event)
        if outer is not None:
            outer(event)

    token = _listener.set(both)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def show_progress(quiet: bool = False) -> Iterator[None]:
    """Show the progress of the block on standard error, unless `quiet`."""
    if quiet:
        yield
    elif not sys.stderr.isatty():
        with listening(_log_event):
            yield
    else:
        with _bars() as show, listening(show):
            yield


def _log_event(event: Progress) -> None:
    if event.what:
        log(f"{event.stage} {event.done}/{event.total}: {event.what}")


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
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(visible(event.stage), total=event.total, what="")
            what = "" if event.done == event.total else visible(event.what)
            bars.update(tasks[event.stage], completed=event.done, total=event.total, what=what)

        yield show
