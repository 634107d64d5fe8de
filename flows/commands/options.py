"""Options of the commands that compute with Dask."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Workers: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Threads or worker processes; absent: one for each core.")
]
Cluster: TypeAlias = Annotated[
    str | None,
    typer.Option(help="threads, processes, tcp://HOST:PORT, a scheduler file .json, or module.Class."),
]
