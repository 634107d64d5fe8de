"""A run that is being made: built in a hidden folder beside its place, and renamed there when it is whole.

The folder is ``.NAME.new``; each builder has a place of its own in it, held by a lock that the system
releases when the process ends, however it ends. So what a living process builds is never mistaken for what a
dead one left, whatever the clocks say.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from i2am.storage.errors import AlreadyExists
from i2am.storage.locations.base import STAGING, system_errors
from i2am.storage.locations.local import sync_directory
from i2am.storage.writing.staging import LocalStaging, sweep


@contextmanager
def atomic_directory(root: Path) -> Iterator[Path]:
    """Build a directory that appears all at once, or not at all.

    Parameters
    ----------
    root : Path
        Its place; nothing, or an empty directory, may be there.

    Yields
    ------
    Path
        An empty directory to build in. Its files must be safely on the medium when the block ends.

    Raises
    ------
    AlreadyExists
        If something has come to that place in the meantime.
    StorageFull, NoPermission
        From the system.
    """
    nest = _nest(root)
    with system_errors(str(root)):
        nest.mkdir(parents=True, exist_ok=True)
        clear_unborn(root)
        hold = LocalStaging(nest, uuid.uuid4().hex)
        try:
            made = hold.folder / root.name
            made.mkdir()
            yield made
            for directory, _, _ in os.walk(made):
                sync_directory(Path(directory))
            _rename(made, root)
        finally:
            hold.discard()
            _drop(nest)


def clear_unborn(root: Path) -> None:
    """Remove what processes left that ended while they were making a directory; the living keep theirs.

    Parameters
    ----------
    root : Path
        The directory's place.
    """
    nest = _nest(root)
    if nest.is_dir():
        sweep(nest, lambda _: ())
        _drop(nest)


def overtaken(place: str) -> AlreadyExists:
    """Return the error for a place that was free a moment ago.

    Parameters
    ----------
    place : str
        Path or URL.

    Returns
    -------
    AlreadyExists
        To be raised.
    """
    return AlreadyExists(f"{place} already exists", remedy="another process has just created it")


def _nest(root: Path) -> Path:
    return root.with_name(f".{root.name}.new")


def _rename(made: Path, root: Path) -> None:
    try:
        os.rename(made, root)
    except OSError as error:
        if os.path.lexists(root) and (not root.is_dir() or os.listdir(root)):
            raise overtaken(str(root)) from error
        raise
    sync_directory(root.parent)


def _drop(nest: Path) -> None:
    with suppress(OSError):  # others build there
        (nest / STAGING).rmdir()
    with suppress(OSError):
        nest.rmdir()
