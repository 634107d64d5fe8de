"""A directory of results: made aside, moved into place when complete, never over a run or foreign files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from i2am.storage.errors import AlreadyExists, DamagedSample, NoPermission, NotFound
from i2am.storage.locations.file_lock import LOCK, locked_folder, remove_abandoned

Made = TypeVar("Made")

MARK = {"written_by": "i2am maps"}
"""Attributes of the root group of a maps store."""

UNBORN_SECONDS = 3600
"""After which an empty scratch folder is nobody's: taking the lock is the first thing done there."""


@contextmanager
def scratch(folder: Path, prefix: str) -> Iterator[Path]:
    """Make a temporary folder, removed at the end; those of processes that were killed are removed first.

    Parameters
    ----------
    folder
        Where; it exists.
    prefix
        Begins the names of all folders of this kind.

    Yields
    ------
    Path
        Absolute.
    """
    for path in folder.glob(f"{prefix}*"):
        with suppress(OSError):  # somebody works there, or was quicker, or it is not ours to remove
            _remove_abandoned(path)
    with locked_folder(folder, prefix) as lock:
        try:
            yield lock.path.parent
        finally:
            shutil.rmtree(lock.path.parent, ignore_errors=True)


def _remove_abandoned(path: Path) -> None:
    try:
        remove_abandoned(path)
    except FileNotFoundError:
        if path.is_dir() and not path.is_symlink() and _ownerless(path):
            shutil.rmtree(path, ignore_errors=True)


def _ownerless(path: Path) -> bool:
    """Whether a folder without a lock is what a worker made anew that wrote on after its command."""
    names = os.listdir(path)
    if names:
        return LOCK not in names
    return time.time() - path.stat().st_mtime > UNBORN_SECONDS


def refuse_inside_run(out: Path) -> None:
    """Check that an output is not a run, nor anywhere inside one.

    Parameters
    ----------
    out
        Where something is about to be written; it need not exist.

    Raises
    ------
    AlreadyExists
        If a run is there or above.
    """
    place = out.resolve()
    for folder in (place, *place.parents):
        if "i2am" in _attributes(folder):
            raise AlreadyExists(
                f"{out} is {'a run' if folder == place else f'inside the run {folder}'}",
                expected="an output outside every run",
                remedy="name another output",
            )


def refuse_foreign_folder(out: Path) -> None:
    """Check that a folder to be replaced holds maps that were saved before, and nothing else.

    Raises
    ------
    AlreadyExists
        If it is a folder of another kind.
    """
    if out.is_dir() and not MARK.items() <= _attributes(out).items():
        raise AlreadyExists(
            f"{out} is not a folder of saved maps",
            expected="nothing, or maps saved before",
            remedy="name another output, or remove it yourself",
        )


def into_place(made: Path, target: Path) -> None:
    """Move a finished output over the one before it, which comes back if that fails.

    Parameters
    ----------
    made
        The output, in a staging folder on the same disk; the one before it is put beside it.
    target
        Where it belongs.
    """
    old = made.parent / f"old-{target.name}"
    if target.is_dir() and not target.is_symlink():
        os.replace(target, old)
    try:
        os.replace(made, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise


def drop_half_written(folder: Path) -> None:
    """Remove what a worker that was killed left of a chunk; the task that replaced it wrote the chunk whole.

    Parameters
    ----------
    folder
        Holds Zarr stores that nobody writes any more.
    """
    for path in folder.rglob("*.partial"):  # zarr's name for a file that is not renamed yet
        path.unlink(missing_ok=True)


def _attributes(folder: Path) -> dict[str, Any]:
    """Attributes of a Zarr group's root document, empty where there is none."""
    try:
        document = json.loads((folder / "zarr.json").read_bytes())
        return dict(document["attributes"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


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


class Timings:
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
