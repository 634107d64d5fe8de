"""``i2am analyze``: marginals, maps of every level, IMACS, tables, figures and the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands.options import AsJson, Cluster, Label, OneOrMoreRuns, Quiet, Workers
from i2am.flows.console.output import emit, note, say

if TYPE_CHECKING:
    from i2am.flows.config.models import AnalysisConfig


def analyze(
    run: OneOrMoreRuns,
    out: Annotated[Path, typer.Option(help="Folder of the results; an earlier analysis in it is replaced.")],
    config: Annotated[
        Path | None, typer.Option(help="What to draw (YAML); see examples/analysis.yaml.")
    ] = None,
    aggregation: Annotated[
        list[str] | None,
        typer.Option(help="Aggregation to add: a name, or module:name of your own; repeat for more."),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="corrected, or official: the paper's own code.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Size of the maps: ROWSxCOLUMNS.")] = None,
    label: Label = False,
    workers: Workers = None,
    cluster: Cluster = None,
    report_dask: Annotated[
        str | None, typer.Option(help="Write Dask's performance report: FILE.html.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that no analysis wrote.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Make it anew even if nothing changed since the last time.")
    ] = False,
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Run as a Prefect flow, whatever it takes.")
    ] = False,
    direct: Annotated[bool, typer.Option("--direct", help="Run without Prefect.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Marginals, maps, IMACS, tables, report.

    Only what is new is computed; an analysis that would come out the same is left as it is. Exit
    status 1: samples were refused as damaged; the others are analysed.
    """
    from i2am.flows.config.load_yaml import amended
    from i2am.flows.config.selections import size as read_size
    from i2am.flows.console.progress import shown
    from i2am.flows.prefect.choose import as_flow, both_refused
    from i2am.flows.subprocesses import termination_interrupts
    from i2am.storage.reading.open import open_any

    settings = _settings(config, aggregation or [], protocol)
    grid = read_size("--size", size)
    options = {"size": grid, "label": label or None, "workers": workers, "cluster": cluster}
    settings = amended(settings, **options, report_dask=report_dask)
    choice = both_refused(prefect, direct)
    open_any(run, label=settings.label)  # what is wrong with the run is said at once, not from inside a flow
    with shown(quiet), termination_interrupts():
        if as_flow(choice):
            from i2am.flows.prefect.analyze_flow import analyze_flow

            summary = analyze_flow(run, str(out), settings, overwrite, again)
        else:
            from i2am.flows.analyze.job import run_analysis

            summary = run_analysis(run, str(out), settings, overwrite, again)
    _show(summary, as_json)
    if summary["refusals"]:
        raise typer.Exit(1)


def _settings(config: Path | None, aggregations: list[str], protocol: str | None) -> AnalysisConfig:
    """The configuration with what the options add to it; names are looked up before anything is computed."""
    from i2am.analysis.aggregations.registry import find
    from i2am.analysis.maps.question import PROTOCOLS
    from i2am.flows.config.load_yaml import load_config
    from i2am.flows.config.models import AnalysisConfig
    from i2am.storage.errors import UnknownName

    settings = load_config(config, AnalysisConfig) if config is not None else AnalysisConfig()
    changes: dict[str, Any] = {"aggregations": [*settings.aggregations, *aggregations]}
    if protocol is not None:
        if protocol not in PROTOCOLS:
            raise UnknownName("protocol", protocol, PROTOCOLS)
        changes["protocol"] = protocol
    for name in changes["aggregations"]:
        find(name)
    return settings.model_copy(update=changes)


def _show(summary: dict[str, Any], as_json: bool) -> None:
    for entry in summary["refusals"]:
        note(f"i2am: refused: {entry['reason']}")
    if as_json:
        emit(summary)
        return
    for line in summary["absent"]:
        say(f"not computed: {line}")
    count = f"{len(summary['samples'])} samples"
    say(f"up to date: {count}, nothing changed" if summary["up_to_date"] else f"analysed {count}")
    say(f"report: {summary['report']}")
