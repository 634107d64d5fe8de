"""``i2am analyze``: marginals, maps of every level, IMACS, tables, figures and the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands import options
from i2am.flows.console.output import counted, print_json, print_line

if TYPE_CHECKING:
    from i2am.flows.config.models import AnalysisConfig


def analyze(
    run: options.OneOrMoreRuns,
    out: Annotated[Path, typer.Option(help="Folder of the results; an earlier analysis in it is replaced.")],
    config: Annotated[Path | None, typer.Option(help="What to draw (YAML).")] = None,
    aggregation: Annotated[
        list[str] | None,
        typer.Option(help="Aggregation to add: a name, or module:name of your own; repeat for more."),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="corrected, or official: the paper's own code.")
    ] = None,
    resize: options.ResizeOrConfigured = None,
    reference: options.Reference = None,
    size: options.Size = None,
    label: options.Label = False,
    workers: options.Workers = None,
    cluster: options.Cluster = None,
    cache: options.Cache = None,
    report_dask: Annotated[
        str | None, typer.Option(help="Write Dask's performance report: FILE.html.")
    ] = None,
    overwrite: options.Overwrite = False,
    again: Annotated[
        bool, typer.Option("--again", help="Make it anew even if nothing changed since the last time.")
    ] = False,
    prefect: options.Prefect = False,
    direct: options.Direct = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Marginals, maps, IMACS, tables, report.

    Only what is new is computed; an analysis that would come out the same is left as it is. Exit
    status 1: samples were refused as damaged; the others are analysed.
    """
    from i2am.flows.console.progress import show_progress
    from i2am.flows.prefect.choose import as_flow
    from i2am.flows.subprocesses import termination_interrupts
    from i2am.storage.reading.open import open_any

    given = {"size": size, "label": label or None, "workers": workers, "cluster": cluster}
    given |= {"report_dask": report_dask, "resize": resize, "cache": cache, "reference": reference}
    settings = _settings(config, aggregation or [], protocol, given)
    through_prefect = as_flow(prefect, direct)
    open_any(run, label=settings.label)  # an error of the run is raised at once, not inside a flow
    with show_progress(quiet), termination_interrupts():
        if through_prefect:
            from i2am.flows.prefect.server import prefect_server

            with prefect_server(shows=(*run, str(out))):
                from i2am.flows.prefect.analyze_flow import analyze_flow

                summary = analyze_flow(run, str(out), settings, overwrite, again)
        else:
            from i2am.flows.analyze.job import run_analysis

            summary = run_analysis(run, str(out), settings, overwrite, again)
    (print_json if as_json else _print)(summary)
    options.exit_if_refused(summary["refusals"])


def _settings(
    config: Path | None, aggregations: list[str], protocol: str | None, options: dict[str, Any]
) -> AnalysisConfig:
    """The configuration with the options over it; names are looked up before anything is computed."""
    from i2am.analysis.aggregations.registry import find
    from i2am.analysis.grids.resize import check_resize
    from i2am.analysis.maps.question import PROTOCOLS
    from i2am.flows.config.load_yaml import load_config
    from i2am.flows.config.models import AnalysisConfig
    from i2am.flows.config.validate import override
    from i2am.storage.errors import UnknownName

    settings = load_config(config, AnalysisConfig) if config is not None else AnalysisConfig()
    if protocol is not None and protocol not in PROTOCOLS:
        raise UnknownName("protocol", protocol, PROTOCOLS)
    check_resize(options["resize"] or "linear")
    names = [*settings.aggregations, *aggregations]
    for name in names:
        find(name)
    return override(settings, aggregations=names, protocol=protocol, **options)


def _print(summary: dict[str, Any]) -> None:
    for line in summary["absent"]:
        print_line(f"not computed: {line}")
    samples = counted(len(summary["samples"]), "sample")
    print_line(f"up to date: {samples}, nothing changed" if summary["up_to_date"] else f"analysed {samples}")
    print_line(f"report: {summary['report']}")
