"""``i2am verify``: every checksum, every commit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from i2am.flows.commands.options import AsJson, Quiet
from i2am.flows.console.output import emit, human_bytes, say

if TYPE_CHECKING:
    from i2am.storage.tools.verify import Progress as Checked
    from i2am.storage.tools.verify import VerifyReport


def with_marginals(found: VerifyReport) -> VerifyReport:
    """Add what is wrong with the marginals of a run that was exported without its attention.

    Parameters
    ----------
    found
        Of :func:`i2am.verify`.

    Returns
    -------
    VerifyReport
        The same for a run with its attention.
    """
    from i2am.analysis.marginals.verify import check_marginals
    from i2am.storage.errors import DamagedRun
    from i2am.storage.reading.open import open_run

    try:
        problems = check_marginals(open_run(found.path))
    except DamagedRun:  # said already
        return found
    return replace(found, problems=(*found.problems, *problems))


def verify(
    run: Annotated[str, typer.Argument(help="Run: a folder NAME.zarr or a URL.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Every checksum, every commit of a run.

    Reads every byte and compares it with what was committed. Exit status 1: something is damaged.
    """
    from i2am.flows.console.progress import Progress, report, shown
    from i2am.storage.tools.verify import verify as check

    def listen(event: Checked) -> None:
        """Pass the count of files on."""
        report(Progress("verify", event.files_done, event.files))

    with shown(quiet):
        found = with_marginals(check(run, on_progress=listen))
    if as_json:
        emit(found.to_json())
    else:
        for problem in found.problems:
            say(f"damaged: {problem}")
        for line in found.notes:
            say(f"note: {line}")
        verdict = "ok" if found.ok else f"{len(found.problems)} problem{'s' if found.problems[1:] else ''}"
        say(
            f"{run}: {verdict}; {found.samples} samples, {found.files} files, {human_bytes(found.bytes)} read"
        )
    if not found.ok:
        raise typer.Exit(1)
