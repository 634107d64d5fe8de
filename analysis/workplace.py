"""A directory of results, made aside and moved into place when all of it is there.

What fails leaves the results before it as they were. A sample that turns out damaged is left out, and the
work is done again without it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from i2am.analysis.outputs import drop_half_written, into_place, refuse_inside_run, scratch
from i2am.storage.errors import AlreadyExists, DamagedSample, NoPermission, NotFound

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a directory holds.

    Attributes
    ----------
    name
        In words, with its article: "a study".
    outputs
        Names of everything that is written into the directory; nothing else there is touched.
    mark
        The one of them that says whose they are.
    """

    name: str
    outputs: tuple[str, ...]
    mark: str

    @property
    def prefix(self) -> str:
        """Begins the names of the folders in which it is made."""
        return f".{self.mark.removesuffix('.json')}-"


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where results are made.

    Attributes
    ----------
    kind
        Of the results.
    directory
        Where they belong.
    staging
        A folder of the same disk, absolute: the workers of a cluster may have another working directory.
    """

    kind: Kind
    directory: Path
    staging: Path

    def publish(self, made: Path) -> None:
        """Move results into place; what only those before them had goes away.

        The mark goes first and comes last: a process killed in between leaves no results, but its folder.

        Parameters
        ----------
        made
            A folder below `staging` that nobody writes any more.
        """
        drop_half_written(made)
        mark = self.kind.mark
        if (self.directory / mark).exists():
            os.replace(self.directory / mark, made / f"old-{mark}")
        for name in (*(name for name in self.kind.outputs if name != mark), mark):
            if (made / name).exists():
                into_place(made / name, self.directory / name)
            elif (self.directory / name).exists():
                os.replace(self.directory / name, made / f"old-{name}")


class Laps:
    """Wall clock of each stage, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._mark = time.perf_counter()

    def end(self, stage: str) -> None:
        """Note the time since the last stage ended."""
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._mark, 3)
        self._mark = now


@contextmanager
def workplace(out: Path, kind: Kind, overwrite: bool) -> Iterator[Workplace]:
    """Make the output directory and a folder for the work, which is gone afterwards.

    Parameters
    ----------
    out
        A local directory; made if absent.
    kind
        Of what will be there.
    overwrite
        Replace things of the names of `kind` that nothing of the kind wrote.

    Raises
    ------
    AlreadyExists
        If `out` is a file, a run, or holds something that would be replaced.
    NoPermission, NotFound
        If `out` cannot be made.
    """
    directory = _directory(out, kind, overwrite)
    with scratch(directory, kind.prefix) as staging:
        yield Workplace(kind, directory, staging)


def without_damaged(
    names: Sequence[str], staging: Path, attempt: Callable[[dict[str, str], Path], Made]
) -> tuple[Made, Path]:
    """Work; a sample that turns out damaged only when its attention is read again is left out too.

    Each attempt has a folder of its own: tasks of the one before may still be writing.

    Parameters
    ----------
    names
        Samples.
    staging
        Where the folders are made.
    attempt
        ({damaged sample: reason}, folder) to what it made.

    Raises
    ------
    DamagedSample
        If no sample is left.
    """
    damaged: dict[str, str] = {}
    while True:
        made = staging / f"attempt-{len(damaged)}"
        made.mkdir()
        try:
            return attempt(damaged, made), made
        except DamagedSample as error:
            if error.sample in damaged or error.sample not in names or len(damaged) + 1 == len(names):
                raise
            damaged[error.sample] = str(error)


def _directory(out: Path, kind: Kind, overwrite: bool) -> Path:
    refuse_inside_run(out)
    if out.exists() and not out.is_dir():
        raise AlreadyExists(
            f"{out} is a file", expected="a directory, or nothing", remedy="name another --out"
        )
    taken = [name for name in kind.outputs if (out / name).exists()]
    ours = (out / kind.mark).is_file() or any(out.glob(f"{kind.prefix}*"))  # of one that was killed
    if taken and not ours and not overwrite:
        raise AlreadyExists(
            f"{out / taken[0]} exists and was not written by {kind.name}",
            remedy="name another directory, or allow overwriting",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = tempfile.mkdtemp(prefix=kind.prefix, dir=out)
    except PermissionError as error:
        raise NoPermission(
            f"cannot write into {out}", got=str(error), remedy="name another directory"
        ) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"cannot make {out}", got=str(error), remedy="name another directory") from error
    os.rmdir(probe)
    return out
