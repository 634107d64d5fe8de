"""The Prefect flow behind ``i2am sweep``: it watches the sweep, and shows shards, samples and results."""

from __future__ import annotations

import json
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import AwaitingRetry, Completed, Crashed, Failed, Running

from i2am.flows.config.models import CaptureConfig
from i2am.flows.console.output import counted, human_bytes, one_line
from i2am.flows.console.progress import listening
from i2am.flows.prefect.markdown import cells, plain
from i2am.flows.prefect.reporter import Reporter
from i2am.flows.sweep.pool import Event, Message, ShardChanged
from i2am.flows.sweep.sweep import run_sweep
from i2am.storage.redaction import redacted


def sweep_as_flow(config: CaptureConfig, retry_failed: bool) -> dict[str, Any]:
    """Run a sweep that a Prefect server shows as a flow run; the summary of :func:`run_sweep`."""
    with Reporter("sweep", config.out, patience=config.sweep.patience) as reporter:
        parameters = {"config": config.model_dump(mode="json", by_alias=True), "retry_failed": retry_failed}
        reporter.start_flow_run(redacted(f"sweep {config.out}"), parameters)
        try:
            summary = reported_sweep(config, retry_failed, reporter)
        except Exception as error:
            reporter.end_flow_run(Failed(message=one_line(error)))
            raise
        except BaseException as error:
            reporter.end_flow_run(Crashed(message=f"ended by {type(error).__name__}"))
            raise
        lost = summary["lost"]
        reporter.end_flow_run(Failed(message=f"{len(lost)} shards were given up") if lost else Completed())
    return summary


def reported_sweep(config: CaptureConfig, retry_failed: bool, reporter: Reporter) -> dict[str, Any]:
    """Run a sweep and report it to a flow run that exists."""

    def on_event(event: Event) -> None:
        if isinstance(event, Message):
            reporter.log(event.text)
        elif isinstance(event, ShardChanged):
            _report_shard(reporter, event)

    with listening(reporter.on_progress):
        summary = run_sweep(config, retry_failed, on_event)
    for name, rows in (("shards", summary["shards"]), ("failures", summary["failed"])):
        reporter.artifact(name, "table", json.dumps(cells(rows)))
    reporter.artifact("summary", "markdown", _page(summary))
    return summary


def _report_shard(reporter: Reporter, event: ShardChanged) -> None:
    shard = event.shard
    state: State[Any]
    if event.state == "running":
        state = Running()
    elif event.state == "retrying":
        state = AwaitingRetry(message=shard.error)
    elif event.state == "failed":
        state = Failed(message=shard.error)
    else:
        state = Completed(message=f"{counted(len(shard.captured), 'sample')} on {shard.place}")
    if shard.error:
        reporter.log(f"shard {shard.number}, attempt {shard.attempts}: {shard.error}")
    reporter.task_run("capture shard", shard.number, f"shard {shard.number}: {shard.ids[0]} ...", state)


def _page(summary: dict[str, Any]) -> str:
    rate = summary["captured"] / max(summary["seconds"], 1e-9)
    lost = "".join(f"- {plain(line)}\n" for line in summary["lost"])
    return (
        f"# {plain(summary['run'])}\n\n| | |\n|---|---|\n"
        f"| captured now | {summary['captured']} |\n"
        f"| committed | {summary['committed']} of {summary['declared']} |\n"
        f"| failed | {len(summary['failed'])} |\n"
        f"| size | {human_bytes(summary['bytes'])} in {summary['files']} files |\n"
        f"| speed | {60 * rate:.1f} samples a minute |\n" + (f"\n## Given up\n\n{lost}" if lost else "")
    )
