"""``i2am export``: samples of a run to share, whole or with their marginals alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from i2am.flows.commands.options import AsJson, Cluster, Quiet, Workers
from i2am.flows.console.output import emit, human_bytes, say

if TYPE_CHECKING:
    from i2am.analysis.events import Event


def export(
    run: Annotated[str, typer.Argument(help="Run: a folder NAME.zarr or a URL.")],
    out: Annotated[str, typer.Option(help="The new run; nothing may be there.")],
    sample: Annotated[list[str] | None, typer.Option(help="Sample to take; repeat for more.")] = None,
    marginals: Annotated[
        bool, typer.Option("--marginals", help="Leave the attention out: maps and scores, no new questions.")
    ] = False,
    workers: Workers = None,
    cluster: Cluster = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Copy samples to share, with their whole attention or with their marginals alone.

    What --marginals makes answers all levels in both directions, IMACS, tables and report.
    """
    from i2am.analysis.study.export_run import export as copy_part
    from i2am.flows.analyze.dask_cluster import computing
    from i2am.flows.config.load_yaml import amended
    from i2am.flows.config.models import Computing
    from i2am.flows.console.describe_run import describe
    from i2am.flows.console.progress import shown
    from i2am.storage.locations.open import locate
    from i2am.storage.reading.open import open_run

    source = open_run(run)
    with shown(quiet), computing(amended(Computing(), workers=workers, cluster=cluster)):
        made = copy_part(source, out, samples=sample, marginals=marginals, on_event=_listen)
    sizes = {"before": describe(source)["bytes"], "after": describe(made)["bytes"]}
    beside = None
    if marginals:
        from i2am.analysis.marginals.store import marginals_path

        beside = marginals_path(out)
        sizes["after"] += sum(size for _, size in locate(beside).files())
    if as_json:
        emit({"run": out, "marginals": beside, "samples": list(made.samples), "bytes": sizes})
        return
    what = f"without attention, marginals in {beside}" if beside is not None else "with attention"
    count = f"{len(made.samples)} sample{'s' if made.samples[1:] else ''}"
    say(f"{out}: {count} {what}; {human_bytes(sizes['after'])} of {human_bytes(sizes['before'])}")


def _listen(event: Event) -> None:
    from i2am.analysis.events import StageAdvanced
    from i2am.flows.console.progress import Progress, report

    if isinstance(event, StageAdvanced):
        report(Progress(event.stage, event.done, event.total, event.stage))
