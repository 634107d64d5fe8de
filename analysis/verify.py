"""`verify`: a run with its marginals, or a directory of results, compared with what was written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from i2am.analysis.output_digests import ALL, changed_files, read_mark
from i2am.storage.errors import DamagedRun
from i2am.storage.format.signed_json import DocumentError
from i2am.storage.tools.verify import Problem, Progress, VerifyReport
from i2am.storage.tools.verify import verify as verify_run

MARKS = (
    "study.json",
    "compare.json",
    "detection.json",
    "quality.json",
    "faithfulness.json",
)
"""Of a study, a comparison, an experiment."""


@dataclass(frozen=True, slots=True)
class OutputProblem(Problem):
    """One output that is not as it was written."""

    def __str__(self) -> str:
        return f"output {self.path}: {self.what}"


def verify(
    path: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> VerifyReport:
    """Check every file of a run, study, comparison or experiment against its digest, and that all are there.

    Parameters
    ----------
    path : str or path-like
        The run, or a URL; or the directory that `i2am analyze`, `compare` or `quality` wrote.
    storage_options : mapping, optional
        Options of the file system, for URLs.
    on_progress : callable, optional
        Called after each file.

    Returns
    -------
    VerifyReport
        Naming sample and layer, or the output, of all that is damaged.

    Raises
    ------
    NotFound, NotARun, NewerFormat, NoPermission
        If there is nothing to check. What is damaged does not raise.
    """
    for mark in MARKS:
        if (Path(path) / mark).is_file():
            return _verify_outputs(Path(path), mark, on_progress)
    from i2am.analysis.marginals.verify import check_marginals
    from i2am.storage.reading.open import open_run

    found = verify_run(path, storage_options, on_progress)
    with suppress(DamagedRun):  # which the report says already
        run = open_run(path, storage_options)
        found = replace(found, problems=(*found.problems, *check_marginals(run, storage_options)))
    return found


def _verify_outputs(folder: Path, mark: str, on_progress: Callable[[Progress], None] | None) -> VerifyReport:
    size = (folder / mark).stat().st_size
    try:
        facts = read_mark(folder / mark)
    except DocumentError as error:
        problem = OutputProblem(None, None, mark, f"{error}; make the results anew")
        return VerifyReport(str(folder), (problem,), (), 0, 1, size)
    files, nbytes = 1, size

    def count(more: int) -> None:
        nonlocal files, nbytes
        files, nbytes = files + 1, nbytes + more
        if on_progress is not None:
            on_progress(Progress(files, max(files, len(facts[ALL]) + 1), nbytes, nbytes))

    problems = tuple(OutputProblem(None, None, *each) for each in changed_files(folder, facts, count))
    return VerifyReport(str(folder), problems, (), len(facts["samples"]), files, nbytes)
