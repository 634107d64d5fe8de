"""``i2am verify``: every checksum, every commit."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.terminal import emit, human_bytes, say


def verify(
    run: Annotated[str, typer.Argument(help="Run: a folder NAME.zarr or a URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Every checksum, every commit of a run.

    Reads every byte and compares it with what was committed. Exit status 1: something is damaged.
    """
    from storage import verify as check

    report = check(run)
    if as_json:
        emit(
            {
                "path": run,
                "ok": report.ok,
                "samples": report.samples,
                "files": report.files,
                "bytes": report.bytes,
                "problems": [
                    {"sample": p.sample, "layer": p.layer, "path": p.path, "what": p.what} for p in report.problems
                ],
            }
        )
    else:
        for problem in report.problems:
            place = f"sample {problem.sample!r}" if problem.sample is not None else "run"
            layer = f", layer {problem.layer!r}" if problem.layer is not None else ""
            say(f"damaged: {place}{layer}: {problem.path}: {problem.what}")
        verdict = "ok" if report.ok else f"{len(report.problems)} problem(s)"
        say(
            f"{run}: {verdict}; checked {report.samples} samples, {report.files} files, {human_bytes(report.bytes)}"
        )
    if not report.ok:
        raise typer.Exit(1)
