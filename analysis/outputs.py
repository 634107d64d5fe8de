"""What an output may replace: never a run, and never a folder that something else wrote."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from i2am.storage.errors import AlreadyExists

MARK = {"written_by": "i2am maps"}
"""Attributes of the root group of a maps store."""

LOCK = "lock"
"""Of a scratch folder: held by the process that works there, however it ends."""

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
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=folder)).absolute()
    try:
        with (made / LOCK).open("xb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _remove_abandoned(path: Path) -> None:
    try:
        with (path / LOCK).open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
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
