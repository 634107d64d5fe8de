"""A directory of results: made in a hidden folder, moved into place when complete, never over a run."""

from __future__ import annotations

import errno
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

from i2am.storage.errors import AlreadyExists, DamagedSample, InputError, NoPermission, NotFound
from i2am.storage.locations.file_lock import LOCK, locked_folder, remove_abandoned, try_lock

Made = TypeVar("Made")

MAPS_ATTRIBUTES = {"written_by": "i2am maps"}
"""Of the root group of a store of saved maps: only such a folder may be replaced by others."""

WAIT_SECONDS = 600.0
"""Time that results wait for others to be moved into, or read from, the same place."""

ABANDONED_SECONDS = 3600
"""Age at which an empty scratch folder is removed: its process would have made the lock by then."""


@contextmanager
def scratch(folder: Path, prefix: str) -> Iterator[Path]:
    """Make a temporary folder, removed at the end; those of processes that were killed are removed first."""
    for path in folder.glob(f"{prefix}*"):
        with suppress(OSError):  # locked, already removed, or not ours
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
        if path.is_dir() and not path.is_symlink() and _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    """Whether a folder without a lock is old, or was made again by a worker that outlived its command."""
    names = os.listdir(path)
    if names:
        return LOCK not in names
    return time.time() - path.stat().st_mtime > ABANDONED_SECONDS


def refuse_inside_run(out: Path) -> None:
    """Check that an output is not a run, nor anywhere inside one."""
    place = out.resolve()
    for folder in (place, *place.parents):
        if "i2am" in _attributes(folder):
            raise AlreadyExists(
                f"{out} is {'a run' if folder == place else f'inside the run {folder}'}",
                expected="an output outside every run",
                remedy="name another output",
            )


def refuse_foreign_folder(out: Path) -> None:
    """Check that a folder to be replaced holds maps that were saved before, and nothing else."""
    if out.is_dir() and not MAPS_ATTRIBUTES.items() <= _attributes(out).items():
        raise AlreadyExists(
            f"{out} is not a folder of saved maps",
            expected="nothing, or maps saved before",
            remedy="name another output, or remove it yourself",
        )


def move_into_place(made: Path, target: Path) -> None:
    """Move a finished output over the one before it, which comes back if that fails."""
    old = made.parent / f"old-{target.name}"
    if target.is_dir() and not target.is_symlink():
        os.replace(target, old)
    try:
        os.replace(made, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise


@contextmanager
def alone_in(folder: Path, name: str = "i2am", *, only_read: bool = False) -> Iterator[None]:
    """Let no other process or thread publish, or read to reuse, what has a name in a folder meanwhile.

    Where nobody may write (`only_read`) there is no lock, because nobody can publish.
    """
    path, give_up = folder / f".{name}.lock", time.monotonic() + WAIT_SECONDS
    try:
        while (lock := try_lock(path)) is None:
            if time.monotonic() > give_up:
                raise InputError(
                    f"{folder} is being written by another process",
                    expected=f"an end within {WAIT_SECONDS:.0f} s",
                    remedy="wait for it, or name another --out",
                )
            time.sleep(0.02)
    except OSError as error:
        if not only_read or error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        yield
        return
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def remove_partial_chunks(folder: Path) -> None:
    """Remove parts of chunks that killed workers left: their tasks ran again and wrote the chunks whole."""
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
class OutputKind:
    """What a directory holds."""

    name: str  # in words, with its article: "a study"
    outputs: tuple[str, ...]  # names of everything written there; nothing else is touched
    mark: str  # the one of them that says whose they are

    @property
    def prefix(self) -> str:
        """Begins the names of the scratch folders in which the outputs are made."""
        return f".{self.mark.removesuffix('.json')}-"


@dataclass(frozen=True, slots=True)
class OutputDirectory:
    """Where results belong, and the scratch folder, absolute and on the same disk, where they are made."""

    kind: OutputKind
    path: Path
    staging: Path
    may_replace: bool  # what another program wrote

    def publish(self, made: Path) -> None:
        """Move a folder of results into place; what only those before them had goes away.

        The mark goes first and comes last: a process killed in between leaves no results, but its folder.
        Of several that publish at once, one waits for the other.
        """
        with alone_in(self.path):
            if not self.may_replace and not (self.path / self.kind.mark).is_file():
                _refuse_foreign_outputs(self.path, self.kind)  # they may have come meanwhile
            self._move(made)

    def _move(self, made: Path) -> None:
        mark = self.kind.mark
        if (self.path / mark).exists():
            os.replace(self.path / mark, made / f"old-{mark}")
        for name in (*(name for name in self.kind.outputs if name != mark), mark):
            if (made / name).exists():
                move_into_place(made / name, self.path / name)
            elif (self.path / name).exists():
                os.replace(self.path / name, made / f"old-{name}")


@contextmanager
def output_directory(out: Path, kind: OutputKind, overwrite: bool) -> Iterator[OutputDirectory]:
    """Make the output directory and a scratch folder in it, which is gone afterwards.

    What another program wrote under one of the names of `kind` is replaced only with `overwrite`.
    """
    refuse_inside_run(out)
    if out.exists() and not out.is_dir():
        raise AlreadyExists(
            f"{out} is a file", expected="a directory, or nothing", remedy="name another --out"
        )
    may_replace = overwrite or any(out.glob(f"{kind.prefix}*"))  # of a process that was killed
    if not may_replace and out.is_dir() and not (out / kind.mark).is_file():
        with alone_in(out, only_read=True):  # what another publishes now is there by halves
            if not (out / kind.mark).is_file():
                _refuse_foreign_outputs(out, kind)
    _make_writable(out, kind.prefix)
    with scratch(out, kind.prefix) as staging:
        yield OutputDirectory(kind, out, staging, may_replace)


def _refuse_foreign_outputs(out: Path, kind: OutputKind) -> None:
    for name in kind.outputs:
        if (out / name).exists():
            raise AlreadyExists(
                f"{out / name} exists and was not written by {kind.name}",
                remedy="name another directory, or overwrite: --overwrite, overwrite=True",
            )


def _make_writable(out: Path, prefix: str) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = tempfile.mkdtemp(prefix=prefix, dir=out)
    except PermissionError as error:
        raise NoPermission(
            f"cannot write into {out}", got=str(error), remedy="name another directory"
        ) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"cannot make {out}", got=str(error), remedy="name another directory") from error
    os.rmdir(probe)


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


def retry_without_damaged(
    names: Sequence[str], staging: Path, attempt: Callable[[dict[str, str], Path], Made]
) -> tuple[Made, Path]:
    """Call `attempt` with ({damaged sample: reason}, new folder) until it finds no further damaged sample.

    A sample may turn out damaged only when its attention is read again. Each attempt has a folder of its
    own: tasks of the one before may still be writing. `DamagedSample` is raised if no sample is left.
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
