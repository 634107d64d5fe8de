"""A directory that is built in a hidden folder beside its place, and renamed there when it is complete.

The folder is ``.NAME.new``. Each process builds in a folder of its own below it and holds its lock, so that
what dead processes left is told from what living ones build.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from i2am.storage.errors import AlreadyExists
from i2am.storage.locations.base import STAGING, system_errors
from i2am.storage.locations.local import make_folders, sync_directory
from i2am.storage.writing.staging import LocalStaging, sweep


@contextmanager
def atomic_directory(root: Path) -> Iterator[Path]:
    """Yield an empty directory that is moved to `root` when the block ends, and removed after an exception.

    Nothing, or an empty directory, may be at `root`; else `AlreadyExists` is raised. The files must be synced
    when the block ends.
    """
    hidden = _hidden_folder(root)
    with system_errors(str(root)):
        make_folders(root.parent)
        hidden.mkdir(exist_ok=True)
        clear_unfinished(root)
        staging = LocalStaging(hidden, uuid.uuid4().hex)
        try:
            made = staging.folder / root.name
            made.mkdir()
            yield made
            for directory, _, _ in os.walk(made):
                sync_directory(Path(directory))
            _rename(made, root)
        finally:
            staging.discard()
            _remove_if_empty(hidden)


def clear_unfinished(root: Path) -> None:
    """Remove what processes left that ended before their directory was complete; living ones keep theirs."""
    hidden = _hidden_folder(root)
    if hidden.is_dir():
        sweep(hidden, lambda _: ())
        _remove_if_empty(hidden)


def created_meanwhile(place: str) -> AlreadyExists:
    """Return the error for a place that was free when it was looked at."""
    return AlreadyExists(f"{place} already exists", remedy="another process has just created it")


def _hidden_folder(root: Path) -> Path:
    return root.with_name(f".{root.name}.new")


def _rename(made: Path, root: Path) -> None:
    try:
        os.rename(made, root)
    except OSError as error:
        if os.path.lexists(root) and (not root.is_dir() or os.listdir(root)):
            raise created_meanwhile(str(root)) from error
        raise
    sync_directory(root.parent)


def _remove_if_empty(hidden: Path) -> None:
    with suppress(OSError):  # other processes build there
        (hidden / STAGING).rmdir()
    with suppress(OSError):
        hidden.rmdir()
