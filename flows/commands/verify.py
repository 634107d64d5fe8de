"""``i2am verify``: every checksum, every commit, every output."""

from __future__ import annotations

import typer

from i2am.flows.commands.options import AsJson, Quiet, RunOrResults
from i2am.flows.console.output import counted, human_bytes, print_json, print_line


def verify(run: RunOrResults, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Every checksum, every commit of a run; every output of a study or a comparison.

    Reads every byte and compares it with what was written. Exit status 1: something is damaged.
    """
    from i2am.analysis.verify import verify as check
    from i2am.flows.console.progress import Progress, emit, show_progress

    with show_progress(quiet):
        found = check(run, on_progress=lambda event: emit(Progress("verify", event.files_done, event.files)))
    if as_json:
        print_json(found.to_json())
    else:
        for problem in found.problems:
            print_line(f"damaged: {problem}")
        for line in found.notes:
            print_line(f"note: {line}")
        verdict = "ok" if found.ok else counted(len(found.problems), "problem")
        counts = f"{counted(found.samples, 'sample')}, {counted(found.files, 'file')}, "
        counts += f"{human_bytes(found.bytes)} read"
        print_line(f"{run}: {verdict}; {counts}")
    if not found.ok:
        raise typer.Exit(1)
