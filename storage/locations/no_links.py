"""A local run holds plain files and folders: nothing is reached through a symbolic link inside it.

A run that comes from somebody else could otherwise lead a reader, or a writer that clears up, to any place of
the machine. The run's own path may be a link.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from i2am.storage.errors import DamagedRun


def check_folder(root: str | Path, folder: str) -> None:
    """Raise `DamagedRun` if a folder is a link, or lies below one or outside the root; it need not exist."""
    whole = f"{os.path.realpath(root)}/{folder}".rstrip("/")
    if os.path.realpath(whole) != whole:
        raise _not_plain(f"{root}/{folder}", "a symbolic link, or a path that leads out of it")


def open_file(path: str) -> int:
    """Open a file for reading, whose folder has been checked; return its descriptor.

    Raises `DamagedRun` if it is a link, a pipe, a socket or a device; else what the system raises.
    """
    try:
        # Without waiting: opening a pipe would hang until somebody writes to it.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP and os.path.islink(path):
            raise _not_plain(path, "a symbolic link") from None
        if error.errno == errno.ENXIO:
            raise _not_plain(path, "a socket or a device") from None
        raise
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise _not_plain(path, "a pipe or a device")


def _not_plain(place: str, got: str) -> DamagedRun:
    return DamagedRun(
        f"{place} is not part of a store",
        expected="plain files and folders",
        got=got,
        remedy="copy what it points to into its place, if you trust it",
    )
