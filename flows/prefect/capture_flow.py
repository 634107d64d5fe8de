"""The Prefect flow behind ``i2am capture``: parameters, progress and results where Prefect shows them."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from i2am.flows.capture.job import run_capture
from i2am.flows.config.models import CaptureConfig
from i2am.flows.console.output import counted, human_bytes
from i2am.flows.console.progress import listening
from i2am.flows.prefect.markdown import cells, plain
from i2am.flows.prefect.reporter import Reporter
from i2am.storage.redaction import without_secrets


@task(name="capture samples", cache_policy=NO_CACHE, persist_result=False)
def capture_all(config: CaptureConfig, retry_failed: bool, keep_going: bool) -> dict[str, Any]:
    """Run or resume the capture, and report its progress."""
    with (
        without_secrets(),
        Reporter("capture", config.out, str(flow_run.id)) as reporter,
        listening(reporter.on_progress),
    ):
        return run_capture(config, retry_failed=retry_failed, keep_going=keep_going)


@task(name="publish capture", cache_policy=NO_CACHE, persist_result=False)
def publish_capture(summary: dict[str, Any]) -> None:
    """Publish a table of the samples and a summary as artifacts."""
    create_table_artifact(
        table=cells(summary["samples"]), key="i2am-capture-samples", description=plain(summary["run"])
    )
    create_markdown_artifact(
        markdown=(
            f"# {plain(summary['run'])}\n\n"
            f"{counted(summary['captured'], 'sample')} captured in {summary['seconds']:.1f} s; "
            f"{summary['committed']} of {summary['declared']} committed; "
            f"{human_bytes(summary['bytes'])} in {summary['files']} files."
        ),
        key="i2am-capture-summary",
    )


@flow(name="i2am-capture", flow_run_name="capture {config.place}", persist_result=False)
def capture_flow(
    config: CaptureConfig, retry_failed: bool = False, keep_going: bool = False
) -> dict[str, Any]:
    """Run or resume a capture; parameters and summary of :func:`i2am.flows.capture.job.run_capture`."""
    summary = capture_all(config, retry_failed, keep_going)
    publish_capture(summary)
    return summary
