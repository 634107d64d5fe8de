"""One lock file for each GPU of a machine: sweeps use a GPU one after the other."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from i2am.storage.locations.file_lock import FileLock, try_lock

FOLDER = Path("/tmp")  # the same folder for every user, whatever TMPDIR says
POLL_SECONDS = 1.0


@contextmanager
def gpu_lock(gpu: str, stop: threading.Event, log: Callable[[str], None]) -> Iterator[FileLock | None]:
    """Wait for a GPU and hold it for the block; None if ``stop`` was set while waiting.

    The kernel frees the lock when the last process that holds it has ended.
    """
    path = FOLDER / f"i2am-gpu-{gpu}.lock"
    lock = _try(path)
    if lock is None:
        log(f"waiting for GPU {gpu}: another process holds {path}")
    while lock is None and not stop.wait(POLL_SECONDS):
        lock = _try(path)
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()


def _try(path: Path) -> FileLock | None:
    _create_for_all_users(path)
    with suppress(FileNotFoundError):  # a cleaner of the folder was faster
        return try_lock(path, create=False)
    return None


def _create_for_all_users(path: Path) -> None:
    with suppress(FileExistsError):
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        os.fchmod(fd, 0o666)  # whatever the umask
        os.close(fd)
