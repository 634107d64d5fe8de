"""``i2am capture``: run or resume a capture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from i2am.flows.commands.options import AsJson, Deadline, Direct, Prefect, Quiet, RetryFailed, RunOut
from i2am.flows.console.output import counted, human_bytes, log, print_json, print_line


def capture(
    config: Annotated[Path, typer.Argument(help="Configuration (YAML); i2am demo writes one.")],
    out: RunOut = None,
    retry_failed: RetryFailed = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Record a sample that fails, and go on with the next.")
    ] = False,
    deadline: Deadline = None,
    prefect: Prefect = False,
    direct: Direct = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run or resume a capture.

    What is committed is never done again; a run of another configuration is refused. A model that makes no
    step within the deadline is given up, and so are samples that other processes hold for longer. Exit
    status 1: samples failed.
    """
    from i2am.flows.config.load_yaml import load_capture
    from i2am.flows.console.progress import show_progress
    from i2am.flows.prefect.choose import as_flow
    from i2am.storage.configuration.validate import override

    settings = override(load_capture(config, out), deadline=deadline)
    through_prefect = as_flow(prefect, direct)
    with show_progress(quiet):
        if through_prefect:
            from i2am.flows.prefect.server import prefect_server

            with prefect_server():
                from i2am.flows.prefect.capture_flow import capture_flow

                summary = capture_flow(settings, retry_failed, keep_going)
        else:
            from i2am.flows.capture.job import run_capture

            summary = run_capture(settings, retry_failed=retry_failed, keep_going=keep_going)
    show_capture(summary, as_json)


def show_capture(summary: dict[str, Any], as_json: bool) -> None:
    """Write what was captured and what failed; exit status 1 if a sample did."""
    failed = summary["failed"]
    for entry in failed:
        log(f"i2am: failed: {entry['sample']}: {entry['error']}")
    if as_json:
        print_json(summary)
    else:
        retry = f"; {len(failed)} failed, i2am capture --retry-failed takes them again" if failed else ""
        print_line(
            f"{summary['run']}: captured {counted(summary['captured'], 'sample')} "
            f"in {summary['seconds']:.1f} s, "
            f"{summary['committed']} of {summary['declared']} committed, {human_bytes(summary['bytes'])} "
            f"in {counted(summary['files'], 'file')}{retry}"
        )
    if failed:
        raise typer.Exit(1)
