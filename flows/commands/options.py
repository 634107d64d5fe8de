"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from i2am.flows.console.output import log

if TYPE_CHECKING:
    from i2am.flows.config.models import Computing


def _read_by(parser: str, help: str) -> Any:
    """An option that a function of `selections` reads; that module is heavy, and so loaded late."""

    def read(param: typer.CallbackParam, value: str | None) -> Any:
        from i2am.flows.config import selections

        return None if value is None else getattr(selections, parser)(param.opts[0], value)

    return typer.Option(callback=read, metavar="<str>", help=help)


def _not_empty(param: typer.CallbackParam, value: str | None) -> str | None:
    if value == "":
        from i2am.storage.errors import InputError

        raise InputError(param.opts[0], expected="a folder or a URL", got="an empty text")
    return value


OneRun: TypeAlias = Annotated[str, typer.Argument(help="Run: a folder NAME.zarr or a URL.")]
RunOrResults: TypeAlias = Annotated[
    str, typer.Argument(metavar="RUN", help="Run: a folder NAME.zarr or a URL; or the --out of an analysis.")
]
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

SampleNames: TypeAlias = Annotated[list[str] | None, typer.Option(help="Sample to take; repeat for more.")]
LayerNames: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="Layer or pattern such as '*up*'; repeat for more.")
]
Steps: TypeAlias = Annotated[Any, _read_by("parse_indices", "Steps to keep: 3 or 0,4 or 0:10 or ::2.")]
Heads: TypeAlias = Annotated[Any, _read_by("parse_indices", "Heads to keep: 3 or 0,4 or 0:4.")]
At: TypeAlias = Annotated[
    Any,
    _read_by(
        "parse_region",
        "Specific level: patch 12,8; box 2,3,9,12; patches '1,2;1,3'; a mask's name; 'tokens 3,5' of words.",
    ),
]
AtPixel: TypeAlias = Annotated[
    Any,
    _read_by("parse_pixels", "Specific level: pixel x,y of the image that patches lie on; or 'x,y;x,y'."),
]
Size: TypeAlias = Annotated[Any, _read_by("parse_size", "Size of the maps: ROWSxCOLUMNS.")]
_RESIZE = "linear; or bicubic, as in the paper: densities may become negative."
Resize: TypeAlias = Annotated[str, typer.Option(help=_RESIZE)]
ResizeOrConfigured: TypeAlias = Annotated[str | None, typer.Option(help=_RESIZE)]
Level: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="unified, time, head, layer or specific; absent: unified, or specific with --at.",
        show_default=False,
    ),
]
Reference: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="NAME",
        help="Of several: reference, reference-1, ..., or text. [default: the first]",
    ),
]
ReferenceOrAll: TypeAlias = Annotated[
    str | None,
    typer.Option("--reference", metavar="NAME", help="As for analyze; all: every one in a figure (.png)."),
]
TimeGroups: TypeAlias = Annotated[int, typer.Option(min=1, help="Groups of the time level.")]
Penalty: TypeAlias = Annotated[float, typer.Option(help="Weight of attention outside the mask.")]
Confidence: TypeAlias = Annotated[float, typer.Option(help="Of the intervals over samples.")]
Protocol: TypeAlias = Annotated[str, typer.Option(help="corrected, or official: the paper's own code.")]

Workers: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Threads or worker processes; absent: one for each core.")
]
Cluster: TypeAlias = Annotated[
    str | None,
    typer.Option(help="threads, processes, slurm, tcp://HOST:PORT, a scheduler file .json, or module.Class."),
]
Cache: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        callback=_not_empty,
        help="Folder or URL where marginals of any runs are kept, instead of beside each run.",
    ),
]
Overwrite: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is at --out, whatever wrote it.")
]
Prefect: TypeAlias = Annotated[
    bool, typer.Option("--prefect", help="Run as a Prefect flow, on a temporary server if need be.")
]
Direct: TypeAlias = Annotated[bool, typer.Option("--direct", help="Run without Prefect.")]

RunOut: TypeAlias = Annotated[
    str | None, typer.Option(help="Write the run here instead of the configuration's `out`.")
]
Deadline: TypeAlias = Annotated[
    float | None,
    typer.Option(help="Seconds without a step or a sample, instead of the configuration's `deadline`."),
]
RetryFailed: TypeAlias = Annotated[
    bool, typer.Option("--retry-failed", help="Take samples again that failed before.")
]
Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def computing(workers: int | None, cluster: str | None) -> Computing:
    """The configuration of Dask from --workers and --cluster."""
    from i2am.flows.config.models import Computing
    from i2am.flows.config.validate import override

    return override(Computing(), workers=workers, cluster=cluster)


def exit_if_refused(refusals: Iterable[Mapping[str, str]]) -> None:
    """Log each damaged sample that was left out; exit with status 1 if there is one."""
    reasons = [entry["reason"] for entry in refusals]
    for reason in reasons:
        log(f"i2am: refused: {reason}")
    if reasons:
        raise typer.Exit(1)
