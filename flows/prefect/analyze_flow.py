"""The Prefect flow behind ``i2am analyze``: parameters, progress and results where Prefect shows them."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from i2am.flows.analyze.job import run_analysis
from i2am.flows.config.models import AnalysisConfig
from i2am.flows.console.output import counted
from i2am.flows.prefect.markdown import cells, plain
from i2am.flows.prefect.stage_log import logged_stages


@task(name="analyse run", cache_policy=NO_CACHE, persist_result=False)
def analyze_run(
    run: str | list[str], out: str, config: AnalysisConfig, overwrite: bool, again: bool
) -> dict[str, Any]:
    """Make marginals, maps, tables, figures and report, and log the stages."""
    with logged_stages():
        return run_analysis(run, out, config, overwrite, again)


@task(name="publish analysis", cache_policy=NO_CACHE, persist_result=False)
def publish_analysis(summary: dict[str, Any]) -> None:
    """Publish a table of the scores and a summary as artifacts."""
    create_table_artifact(
        table=cells(summary["scores"]), key="i2am-analysis-scores", description=plain(summary["run"])
    )
    refused = "".join(f"- {plain(entry['reason'])}\n" for entry in summary["refusals"])
    create_markdown_artifact(
        markdown=(
            f"# {plain(summary['run'])}\n\n"
            f"{_told(summary)}. Report: {plain(summary['report'])}\n\n"
            + (f"## Refused\n\n{refused}" if refused else "")
        ),
        key="i2am-analysis-summary",
    )


def _told(summary: dict[str, Any]) -> str:
    if summary["up_to_date"]:
        return f"{counted(len(summary['samples']), 'sample')}, up to date: nothing changed"
    return f"{counted(len(summary['samples']), 'sample')} analysed, {len(summary['new'])} of them new"


@flow(name="i2am-analyze", flow_run_name="analyze {run}", persist_result=False)
def analyze_flow(
    run: str | list[str], out: str, config: AnalysisConfig, overwrite: bool = False, again: bool = False
) -> dict[str, Any]:
    """Analyse a run into a directory, as :func:`i2am.flows.analyze.job.run_analysis` does."""
    summary = analyze_run(run, out, config, overwrite, again)
    publish_analysis(summary)
    return summary
