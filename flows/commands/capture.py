"""``i2am capture``: run or resume a capture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import emit, human_bytes, say


def capture(
    config: Annotated[Path, typer.Argument(help="Configuration (YAML); see examples/.")],
    out: Annotated[
        str | None, typer.Option(help="Write the run here instead of the configuration's `out`.")
    ] = None,
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Run as a Prefect flow, whatever it takes.")
    ] = False,
    direct: Annotated[bool, typer.Option("--direct", help="Run without Prefect.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Run or resume a capture.

    What is committed is never done again; a run of another configuration is refused.
    """
    from flows.loading import load_capture
    from flows.orchestrate import as_flow, both_refused
    from flows.progress import shown

    settings = load_capture(config, out)
    choice = as_flow(both_refused(prefect, direct))
    with shown(quiet):
        if choice:
            from flows.capture_flow import capture_flow

            summary = capture_flow(settings)
        else:
            from flows.capture_job import run_capture

            summary = run_capture(settings)
    if as_json:
        emit(summary)
        return
    say(
        f"{summary['run']}: captured {summary['captured']} samples in {summary['seconds']:.1f} s, "
        f"{summary['committed']} of {summary['declared']} committed, {human_bytes(summary['bytes'])} "
        f"in {summary['files']} files"
    )
