"""``i2am compact``: one index for the commit records of a large run."""

from __future__ import annotations

from typing import Annotated

import typer

from i2am.flows.commands.options import AsJson, Quiet
from i2am.flows.console.output import emit, say


def compact(
    run: Annotated[str, typer.Argument(help="Run: a folder NAME.zarr or a URL.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Index the commit records, so that a run of many samples opens quickly; captures do so by themselves.

    Safe at any time, also while samples are written.
    """
    from i2am.flows.console.progress import Progress, report, shown
    from i2am.storage.reading.commit_index import compact as compact_records
    from i2am.storage.reading.open import open_run

    def listen(done: int, total: int) -> None:
        """Move the bar."""
        report(Progress("compact", done, total))

    with shown(quiet):
        entries = compact_records(run, on_record=listen)
    samples = len(open_run(run).samples)
    if as_json:
        emit({"run": run, "samples": samples, "written": entries})
    elif entries:
        say(f"{run}: {entries} of {samples} commit records indexed")
    else:
        say(f"{run}: the index of its {samples} commit records was up to date")
