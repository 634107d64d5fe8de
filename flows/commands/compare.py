"""``i2am compare``: two runs set side by side, pair by pair of their samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from i2am.flows.commands import options
from i2am.flows.console.output import counted, number, percent, print_json, print_line, print_table


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Run: a folder NAME.zarr, a URL, or a pattern.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise; differences are B - A.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; an earlier comparison is replaced.")],
    layer: options.LayerNames = None,
    sample: options.SampleNames = None,
    reference: options.Reference = None,
    steps: options.Steps = None,
    heads: options.Heads = None,
    size: options.Size = None,
    resize: options.Resize = "linear",
    time_groups: options.TimeGroups = 5,
    penalty: options.Penalty = 3.0,
    confidence: options.Confidence = 0.95,
    protocol: options.Protocol = "corrected",
    details: Annotated[int, typer.Option(min=0, help="Pairs to draw: those that differ most.")] = 6,
    label: options.Label = False,
    workers: options.Workers = None,
    cluster: options.Cluster = None,
    cache: options.Cache = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Two runs, sample by sample: differences in maps and IMACS. Exit status 1: some were damaged."""
    from i2am.analysis.compare.compare import compare as compare_runs
    from i2am.flows.analyze.dask_cluster import computing
    from i2am.flows.analyze.job import emit_event
    from i2am.flows.console.progress import show_progress
    from i2am.flows.subprocesses import termination_interrupts
    from i2am.storage.reading.open import open_any

    question: dict[str, Any] = {"layers": layer, "samples": sample, "steps": steps, "heads": heads}
    question |= {"size": size, "resize": resize, "time_groups": time_groups, "penalty": penalty}
    question |= {"confidence": confidence, "protocol": protocol, "details": details, "store": cache}
    question["reference"] = reference
    where = options.computing(workers, cluster)
    first, second = open_any(a, label=label), open_any(b, label=label)
    with show_progress(quiet), termination_interrupts(), computing(where):
        found = compare_runs(first, second, out, **question, on_event=emit_event, overwrite=overwrite)
    summary = found.to_json()
    if as_json:
        print_json(summary)
    else:
        _print(summary)
    options.exit_if_refused(summary["refusals"])


def _print(summary: dict[str, Any]) -> None:
    for line in summary["absent"]:
        print_line(f"note: {line}")
    alone = summary["alone"]
    left = f"; left out: {alone['a']} in A alone, {alone['b']} in B alone" if any(alone.values()) else ""
    print_line(f"compared {counted(len(summary['samples']), 'pair')}{left}")
    print_table(
        ["direction", "score", "pairs", "A", "B", "B - A", "from", "to", "rose in"],
        [
            [row["direction"], row["metric"], row["pairs"]]
            + [number(row[name]) for name in ("mean_a", "mean_b", "difference", "low", "high")]
            + [percent(row["rose"])]
            for row in summary["summary"]
        ],
        right=range(2, 9),
    )
    print_table(
        ["direction", "distance of maps", "correlation", "pixels whose interval excludes 0"],
        [
            [
                row["direction"],
                number(row["distance"]),
                number(row["correlation"]),
                percent(row["excluding_zero"]),
            ]
            for row in summary["map_summary"]
        ],
        right=range(1, 4),
    )
    print_line(f"report: {summary['report']}")
