"""``i2am sweep``: a capture over several processes, as a Prefect flow."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from i2am.flows.commands.capture import show_capture
from i2am.flows.commands.options import AsJson, Quiet, RetryFailed, RunOut
from i2am.flows.console.output import log


def sweep(
    config: Annotated[Path, typer.Argument(help="Configuration (YAML) of the capture; see examples/.")],
    out: RunOut = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Capture processes, without GPUs.")] = None,
    gpus: Annotated[
        str | None, typer.Option(help="GPUs, one process for each: 0,1,2,3, as CUDA_VISIBLE_DEVICES.")
    ] = None,
    retry_failed: RetryFailed = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run or resume a capture over several processes, as a Prefect flow.

    Uses the server that PREFECT_API_URL names, or a temporary one. A process that is lost is replaced, a
    server that is lost is waited for, a sample that fails is set aside; run the command again to go on. Exit
    status 1: samples are set aside, or shards were given up.
    """
    from i2am.flows.config.load_yaml import load_capture
    from i2am.flows.config.models import Sweep
    from i2am.flows.console.progress import show_progress
    from i2am.flows.prefect.choose import as_flow
    from i2am.flows.subprocesses import termination_interrupts

    settings = load_capture(config, out)
    given = {"workers": workers, "gpus": gpus.split(",") if gpus is not None else None}
    changes = {key: value for key, value in given.items() if value is not None}
    spread = Sweep.model_validate({**settings.sweep.model_dump(), **changes})
    settings = settings.model_copy(update={"sweep": spread})
    as_flow(True)
    with show_progress(quiet), termination_interrupts(), _server():
        from i2am.flows.prefect.server_loss import ServerGone, leave, sweep_through_losses

        try:
            summary, recorded = sweep_through_losses(settings, retry_failed)
        except ServerGone as error:
            log(f"i2am: {error}")
            leave(error.exit_status)
    status = _show(summary, as_json)
    if not recorded:
        leave(status)
    if status:
        raise typer.Exit(status)


def _show(summary: dict[str, Any], as_json: bool) -> int:
    """Say what came of the sweep; the exit status."""
    for line in summary["lost"]:
        log(f"i2am: given up: {line}")
    try:
        show_capture(summary, as_json)
    except typer.Exit as leaving:
        return leaving.exit_code
    return 1 if summary["lost"] else 0


@contextmanager
def _server() -> Iterator[None]:
    """The server of the environment, or a temporary one."""
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    from i2am.flows.prefect.server import temporary_server

    with tempfile.TemporaryDirectory(prefix="i2am-prefect-") as home, temporary_server(Path(home)) as env:
        os.environ.update(env)
        try:
            yield
        finally:
            from prefect.logging.handlers import APILogHandler

            APILogHandler().flush()  # while there is somebody to take them
