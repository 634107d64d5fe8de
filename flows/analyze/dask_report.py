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

TITLE = b"<title>Dask Performance Report</title>"
"""What such a page has near its beginning."""


def check_report(path: Path, overwrite: bool = False) -> None:
    """Refuse a place where the report could not be written, or would replace something else."""
    from i2am.analysis.output_directory import refuse_inside_run

    if path.suffix != ".html":
        raise ConfigError(f"report {path}", expected="a name that ends in .html", got=repr(path.suffix))
    refuse_inside_run(path)
    if not path.parent.is_dir():
        raise NotFound(f"directory {path.parent} does not exist", remedy="make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise NoPermission(f"cannot write into {path.parent}", remedy="name another report")
    if path.is_dir() or (path.exists() and not overwrite and TITLE not in path.read_bytes()[:4096]):
        raise AlreadyExists(
            f"{path} exists and is no report of Dask", remedy="name another, or overwrite: --overwrite"
        )


@contextmanager
def performance_report(path: Path, client: Client) -> Iterator[None]:
    """Write the report of the block, once it has succeeded; the scheduler draws the page with bokeh."""
    from importlib.metadata import PackageNotFoundError, version

    from distributed import performance_report as dask_report

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
        report = dask_report(filename=str(made), mode="inline")
        report.__enter__()
        yield
        report.__exit__(None, None, None)
        os.replace(made, path)
