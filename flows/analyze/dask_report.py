"""Dask's performance report of a block of work: one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from i2am.storage.errors import AlreadyExists, ConfigError, MissingDependency, NoPermission, NotFound

if TYPE_CHECKING:
    from distributed import Client

MARK = b"<title>Dask Performance Report</title>"
"""What such a page has near its beginning."""


def check_report(path: Path, overwrite: bool = False) -> None:
    """Refuse a place where a report could not be written, or would destroy something, before any work.

    Parameters
    ----------
    path
        Where the page shall be.
    overwrite
        Replace a file that is no such report.

    Raises
    ------
    ConfigError
        If its name does not end in .html.
    NotFound, NoPermission
        If its folder does not exist, or may not be written.
    AlreadyExists
        If something else is there, or the place is inside a run.
    """
    from i2am.analysis.output_directory import refuse_inside_run

    if path.suffix != ".html":
        raise ConfigError(f"report {path}", expected="a name that ends in .html", got=repr(path.suffix))
    refuse_inside_run(path)
    if not path.parent.is_dir():
        raise NotFound(f"directory {path.parent} does not exist", remedy="make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise NoPermission(f"cannot write into {path.parent}", remedy="name another report")
    if path.is_dir() or (path.exists() and not overwrite and MARK not in path.read_bytes()[:4096]):
        raise AlreadyExists(
            f"{path} exists and is no report of Dask", remedy="name another, or allow overwriting"
        )


@contextmanager
def reported(path: Path, client: Client) -> Iterator[None]:
    """Write the report of the block, once it has succeeded.

    Parameters
    ----------
    path
        Checked by `check_report`.
    client
        Active; its scheduler draws the page.

    Raises
    ------
    MissingDependency
        If bokeh is missing here or where the scheduler runs.
    """
    from importlib.metadata import PackageNotFoundError, version

    from distributed import performance_report

    from i2am.analysis.output_directory import scratch

    try:
        version("bokeh")
        client.run_on_scheduler(version, "bokeh")
    except PackageNotFoundError as error:
        raise MissingDependency(
            "Dask's performance report needs bokeh, here and on the scheduler",
            got=str(error),
            remedy="pip install 'i2am[flows]'",
        ) from error
    with scratch(path.parent, ".report-") as folder:
        made = folder / path.name
        report = performance_report(filename=str(made), mode="inline")
        report.__enter__()
        yield
        report.__exit__(None, None, None)
        os.replace(made, path)
