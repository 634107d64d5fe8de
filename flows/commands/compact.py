"""``i2am compact``: one index for the commit records of a large run."""

from __future__ import annotations

from i2am.flows.commands.options import AsJson, OneRun, Quiet
from i2am.flows.console.output import print_json, print_line


def compact(run: OneRun, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Index the commit records, so that a run of many samples opens quickly; captures do so by themselves.

    Safe at any time, also while samples are written.
    """
    from i2am.flows.console.progress import Progress, emit, show_progress
    from i2am.storage.reading.commit_index import compact as compact_records
    from i2am.storage.reading.open import open_run

    with show_progress(quiet):
        entries = compact_records(run, on_record=lambda done, total: emit(Progress("compact", done, total)))
    samples = len(open_run(run).samples)
    if as_json:
        print_json({"run": run, "samples": samples, "written": entries})
    elif entries:
        print_line(f"{run}: {entries} of {samples} commit records indexed")
    else:
        print_line(f"{run}: the index of its {samples} commit records was up to date")
