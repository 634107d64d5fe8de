"""``i2am export``: samples of a run to share, whole or with their marginals alone."""

from __future__ import annotations

from typing import Annotated

import typer

from i2am.flows.commands import options
from i2am.flows.console.output import counted, human_bytes, print_json, print_line


def export(
    run: options.OneRun,
    out: Annotated[str, typer.Option(help="The new run; nothing may be there.")],
    sample: options.SampleNames = None,
    marginals: Annotated[
        bool, typer.Option("--marginals", help="Leave the attention out: maps and scores, no new questions.")
    ] = False,
    workers: options.Workers = None,
    cluster: options.Cluster = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Copy samples to share, with their whole attention or with their marginals alone.

    What --marginals makes answers all levels in both directions, IMACS, tables and report.
    """
    from i2am.analysis.marginals.store import marginals_path
    from i2am.analysis.study.export_run import export as copy_part
    from i2am.flows.analyze.dask_cluster import computing
    from i2am.flows.analyze.job import emit_event
    from i2am.flows.console.describe_run import describe
    from i2am.flows.console.progress import show_progress
    from i2am.storage.locations.open import locate
    from i2am.storage.reading.open import open_run

    source = open_run(run)
    with show_progress(quiet), computing(options.computing(workers, cluster)):
        made = copy_part(source, out, samples=sample, marginals=marginals, on_event=emit_event)
    sizes = {"before": describe(source)["bytes"], "after": describe(made)["bytes"]}
    beside = marginals_path(out) if marginals else None
    if beside is not None:
        sizes["after"] += sum(size for _, size in locate(beside).files())
    if as_json:
        print_json({"run": out, "marginals": beside, "samples": list(made.samples), "bytes": sizes})
        return
    what = f"without attention, marginals in {beside}" if beside is not None else "with attention"
    sizes_in_words = f"{human_bytes(sizes['after'])} of {human_bytes(sizes['before'])}"
    print_line(f"{out}: {counted(len(made.samples), 'sample')} {what}; {sizes_in_words}")
