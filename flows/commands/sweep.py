"""``i2am sweep``: a capture over several processes, which Prefect may watch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands.capture import show_capture
from i2am.flows.commands.options import AsJson, Deadline, Direct, Prefect, Quiet, RetryFailed, RunOut
from i2am.flows.console.output import log

if TYPE_CHECKING:
    from i2am.flows.config.models import CaptureConfig


def sweep(
    config: Annotated[
        Path, typer.Argument(help="Configuration (YAML) of the capture; i2am demo writes one.")
    ],
    out: RunOut = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Capture processes, without GPUs.")] = None,
    gpus: Annotated[
        str | None, typer.Option(help="GPUs, one process for each: 0,1,2,3, as CUDA_VISIBLE_DEVICES.")
    ] = None,
    deadline: Deadline = None,
    retry_failed: RetryFailed = False,
    prefect: Prefect = False,
    direct: Direct = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run or resume a capture over several processes.

    A process that is lost is replaced, a sample that fails is recorded; run the command again to go on. Where
    PREFECT_API_URL names a server, the sweep is a Prefect flow there; it goes on if the server is lost. Exit
    status 1: samples failed, or shards were given up.
    """
    from i2am.flows.config.load_yaml import load_capture
    from i2am.flows.console.progress import show_progress
    from i2am.flows.prefect.choose import as_flow
    from i2am.flows.subprocesses import termination_interrupts
    from i2am.storage.configuration.validate import override

    settings = load_capture(config, out)
    given = {"workers": workers, "deadline": deadline, "gpus": gpus.split(",") if gpus is not None else None}
    if changes := {key: value for key, value in given.items() if value is not None}:
        settings = override(settings, sweep={**settings.sweep.model_dump(), **changes})
    through_prefect = as_flow(prefect, direct)
    with show_progress(quiet), termination_interrupts():
        if through_prefect:
            summary = _with_prefect(settings, retry_failed)
        else:
            from i2am.flows.sweep.sweep import run_sweep

            summary = run_sweep(settings, retry_failed)
    for line in summary["lost"]:
        log(f"i2am: given up: {line}")
    show_capture(summary, as_json)
    if summary["lost"]:
        raise typer.Exit(1)


def _with_prefect(config: CaptureConfig, retry_failed: bool) -> dict[str, Any]:
    from i2am.flows.prefect.server import prefect_server

    with prefect_server():
        from i2am.flows.prefect.sweep_flow import sweep_as_flow

        return sweep_as_flow(config, retry_failed)
