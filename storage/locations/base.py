"""What the store needs from the place where a run lives, and the errors such a place may raise."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from i2am.storage.errors import I2AMError, NoPermission, StorageFull

STAGING = ".staging"
"""Directory below a local run for unfinished files; nothing in it belongs to the run."""

STREAM_BYTES = 4 << 20
"""Bytes that `Location.stream` yields at a time."""


class TooLarge(ValueError):
    """A file has more bytes than its reader accepts."""


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def system_errors(place: str) -> Iterator[None]:
    """Turn the system's errors about space and permission into `StorageFull` and `NoPermission`."""
    try:
        yield
    except OSError as error:
        if (translated := translate(error, place)) is error:
            raise
        raise translated from error


def translate(error: OSError, place: str) -> OSError:
    """Return `StorageFull` or `NoPermission` for a system error, or the error itself."""
    if isinstance(error, I2AMError):
        return error
    if error.errno in _FULL:
        return StorageFull(
            f"no space left for {place}",
            got=os.strerror(error.errno or errno.ENOSPC),
            remedy="free some space and run again: committed samples are kept",
        )
    if error.errno in _DENIED or isinstance(error, PermissionError):
        return NoPermission(
            f"no permission for {place}",
            got=str(error.strerror or error),
            remedy="check owner, mode and mount of the path",
        )
    return error


class Location(Protocol):
    """What the store needs from the place where a run lives.

    Paths are relative, with ``/``. Reading a file that does not exist raises FileNotFoundError.
    """

    url: str
    root: Path | None

    def read(self, path: str, most: int | None = None) -> bytes:
        """Return a whole file; raise `TooLarge`, without reading it, if it has more than `most` bytes."""
        ...

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]], size: int) -> list[bytes]:
        """Return byte ranges (start, stop); raise ValueError if the file has another size than `size`."""
        ...

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield a whole file in blocks of `STREAM_BYTES`."""
        ...

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes, or None if there is none."""
        ...

    def names(self, path: str) -> list[str]:
        """Return the names directly below a directory, sorted; none if it does not exist."""
        ...

    def files(self) -> Iterator[tuple[str, int]]:
        """Yield every file below the run as (path, bytes)."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write a whole file so that readers see all of it or nothing."""
        ...

    def write_new(self, path: str, data: bytes) -> bool:
        """Write a file that must not exist yet; return False if it does."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        ...


Buffer = bytes | memoryview | np.ndarray[Any, Any]


def write_all(fd: int, buffers: Sequence[Buffer]) -> None:
    """Write C-contiguous buffers one after another, whatever the system takes at a time."""
    views = [np.frombuffer(b, np.uint8).data for b in buffers]
    while views:
        written = os.writev(fd, views)
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]
