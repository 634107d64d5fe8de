"""Exclusive locks on files. The system releases a lock when its process ends, however it ends."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

LOCK = "lock"
"""The file in a folder that the process working there keeps locked."""


class FileLock:
    """A lock that is held until `release`, or the end of a with block. The file itself stays."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def try_lock(path: Path, *, create: bool = True) -> FileLock | None:
    """Lock a file, created where absent if `create`; return None if its lock is held already.

    A link is not followed. Threads of one process exclude each other as processes do.
    """
    import fcntl  # absent on Windows, where everything but locks works

    flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    while True:
        fd = os.open(path, flags, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                return FileLock(path, fd)
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:  # removed by the last holder before this lock was taken: try again
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def locked_folder(parent: Path, prefix: str) -> FileLock:
    """Make a temporary folder and lock it; the folder is the parent of the lock's path."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)).absolute()
        with suppress(FileNotFoundError):  # another process took the folder for an abandoned one
            if (lock := try_lock(folder / LOCK)) is not None:
                return lock


def remove_abandoned(folder: Path) -> None:
    """Remove a folder whose process has ended; raise FileNotFoundError if the folder has no lock."""
    if (lock := try_lock(folder / LOCK, create=False)) is not None:
        with lock:
            shutil.rmtree(folder, ignore_errors=True)
