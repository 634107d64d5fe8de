"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

OneOrMoreRuns: TypeAlias = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="A folder NAME.zarr or a URL; several, or a pattern in quotes, are read as one run.",
        show_default=False,
    ),
]
Label: TypeAlias = Annotated[
    bool, typer.Option("--label", help="Name samples RUN/SAMPLE, where several runs share ids.")
]
Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON.")]
RunOut: TypeAlias = Annotated[
    str | None, typer.Option(help="Write the run here instead of the configuration's `out`.")
]
RetryFailed: TypeAlias = Annotated[
    bool, typer.Option("--retry-failed", help="Take samples again that were set aside as failed.")
]
Workers: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Threads or worker processes; absent: one for each core.")
]
Cluster: TypeAlias = Annotated[
    str | None,
    typer.Option(help="threads, processes, slurm, tcp://HOST:PORT, a scheduler file .json, or module.Class."),
]
