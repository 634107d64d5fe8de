"""``i2am compare``: two runs set side by side, pair by pair of their samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from i2am.flows.commands.options import AsJson, Cluster, Label, Quiet, Workers
from i2am.flows.console.output import emit, note, say, table


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Run: a folder NAME.zarr, a URL, or a pattern.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise; differences are B - A.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; an earlier comparison is replaced.")],
    layer: Annotated[
        list[str] | None, typer.Option(help="Layer or pattern such as '*up*'; repeat for more.")
    ] = None,
    sample: Annotated[list[str] | None, typer.Option(help="Sample to compare; repeat for more.")] = None,
    steps: Annotated[str | None, typer.Option(help="Steps to keep: 3 or 0,4 or 0:10.")] = None,
    heads: Annotated[str | None, typer.Option(help="Heads to keep: 3 or 0,4 or 0:4.")] = None,
    size: Annotated[str | None, typer.Option(help="Size of the maps: ROWSxCOLUMNS.")] = None,
    time_groups: Annotated[int, typer.Option(min=1, help="Groups of the time level.")] = 5,
    penalty: Annotated[float, typer.Option(help="Weight of attention outside the mask.")] = 3.0,
    confidence: Annotated[float, typer.Option(help="Of the intervals over pairs.")] = 0.95,
    protocol: Annotated[
        str, typer.Option(help="corrected, or official: the paper's own code.")
    ] = "corrected",
    details: Annotated[int, typer.Option(min=0, help="Pairs to draw: those that differ most.")] = 6,
    label: Label = False,
    workers: Workers = None,
    cluster: Cluster = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that no comparison wrote.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Two runs, sample by sample: differences in maps and IMACS. Exit status 1: some were damaged."""
    from i2am.analysis.compare.compare import compare as compare_runs
    from i2am.flows.analyze.dask_cluster import computing
    from i2am.flows.analyze.job import listen
    from i2am.flows.config import selections
    from i2am.flows.config.load_yaml import amended
    from i2am.flows.config.models import Computing
    from i2am.flows.console.progress import shown
    from i2am.flows.subprocesses import termination_interrupts
    from i2am.storage.reading.open import open_any

    question: dict[str, Any] = {
        "layers": layer,
        "samples": sample,
        "steps": selections.from_option("--steps", steps),
        "heads": selections.from_option("--heads", heads),
        "size": selections.size("--size", size),
        "time_groups": time_groups,
        "penalty": penalty,
        "confidence": confidence,
        "protocol": protocol,
        "details": details,
    }
    where = amended(Computing(), workers=workers, cluster=cluster)
    first, second = open_any(a, label=label), open_any(b, label=label)
    with shown(quiet), termination_interrupts(), computing(where):
        found = compare_runs(first, second, out, **question, on_event=listen, overwrite=overwrite)
    summary = found.to_json()
    for entry in summary["refusals"]:
        note(f"i2am: refused: {entry['reason']}")
    emit(summary) if as_json else _show(summary)
    if summary["refusals"]:
        raise typer.Exit(1)


def _show(summary: dict[str, Any]) -> None:
    for line in summary["absent"]:
        say(f"note: {line}")
    alone = summary["alone"]
    left = f"; left out: {alone['a']} in A alone, {alone['b']} in B alone" if any(alone.values()) else ""
    say(f"compared {len(summary['samples'])} pairs{left}")
    table(
        ["direction", "score", "pairs", "A", "B", "B - A", "from", "to", "rose in"],
        [
            [
                row["direction"],
                row["metric"],
                row["pairs"],
                *(_number(row[name]) for name in ("mean_a", "mean_b", "difference", "low", "high")),
                "" if row["rose"] is None else f"{100 * row['rose']:.0f}%",
            ]
            for row in summary["summary"]
        ],
        right=tuple(range(2, 9)),
    )
    table(
        ["direction", "distance of maps", "correlation", "pixels whose interval excludes 0"],
        [
            [
                row["direction"],
                _number(row["distance"]),
                _number(row["correlation"]),
                "" if row["excluding_zero"] is None else f"{100 * row['excluding_zero']:.0f}%",
            ]
            for row in summary["map_summary"]
        ],
        right=(1, 2, 3),
    )
    say(f"report: {summary['report']}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
