"""Where a run lives: a local directory, or a prefix of anything that fsspec or obstore can address.

Local directories take the direct way (rename, fsync, locks); everything else is whole-object puts and gets.
Missing files are `FileNotFoundError` everywhere; lack of space and of permission become the project's own
errors.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from i2am.storage.locations.base import STAGING, STREAM_BYTES, TooLarge, system_errors, write_all
from i2am.storage.locations.file_lock import FileLock, try_lock
from i2am.storage.locations.no_links import PlainFolders


def sync_directory(path: Path) -> None:
    """See a directory's entries safely onto the medium.

    Parameters
    ----------
    path : Path
        A local directory.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class LocalLocation:
    """A directory of this machine.

    Parameters
    ----------
    root : Path
        The run's directory.
    """

    def __init__(self, root: Path) -> None:
        self.root: Path | None = root
        self._root = root
        self._plain = PlainFolders(root)
        self.url = str(root)

    def __repr__(self) -> str:
        return f"LocalLocation({self.url!r})"

    def read(self, path: str, most: int | None = None) -> bytes:
        """Return a whole file; see `Location`."""
        with system_errors(f"{self.url}/{path}"), open(self._plain.open(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if most is not None and size > most:
                raise TooLarge(f"it has {size:,} bytes, more than {most:,}")
            return file.read()

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]], size: int) -> list[bytes]:
        """Return byte ranges; see `Location`."""
        with system_errors(f"{self.url}/{path}"), self._opened(path, size) as fd:
            return [os.pread(fd, stop - start, start) for start, stop in ranges]

    def read_into(self, path: str, start: int, targets: Sequence[np.ndarray[Any, Any]], size: int) -> None:
        """Read consecutive bytes straight into arrays.

        Parameters
        ----------
        path : str
            File below the run.
        start : int
            Offset of the first byte.
        targets : sequence of ndarray
            C-contiguous; filled one after another.
        size : int
            Bytes that the file must have.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file has another size, or ends too early.
        """
        views = [memoryview(target.reshape(-1).view(np.uint8).data) for target in targets]
        with system_errors(f"{self.url}/{path}"), self._opened(path, size) as fd:
            while views:
                got = os.preadv(fd, views, start)
                if got == 0:
                    raise ValueError(f"it ends before byte {start + len(views[0])}")
                start += got
                while views and got >= len(views[0]):
                    got -= len(views.pop(0))
                if views:
                    views[0] = views[0][got:]

    @contextmanager
    def _opened(self, path: str, size: int) -> Iterator[int]:
        fd = self._plain.open(path)
        try:
            if (found := os.fstat(fd).st_size) != size:
                raise ValueError(f"it has {found} bytes instead of {size}")
            yield fd
        finally:
            os.close(fd)

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield a whole file in blocks; see `Location`."""
        with system_errors(f"{self.url}/{path}"), open(self._plain.open(path), "rb", buffering=0) as file:
            while block := file.read(STREAM_BYTES):
                yield block

    def size(self, path: str) -> int | None:
        """Return the size in bytes or None; see `Location`."""
        place = f"{self.url}/{path}"
        with system_errors(place):
            self._plain.check(path.rpartition("/")[0])
            try:
                found = os.lstat(place)  # a pathlib.Path would cost more than the question
            except (FileNotFoundError, NotADirectoryError):
                return None
            return found.st_size if stat.S_ISREG(found.st_mode) else None

    def names(self, path: str) -> list[str]:
        """Return the names below a directory; see `Location`."""
        with system_errors(f"{self.url}/{path}"):
            self._plain.check(path)
            try:
                return sorted(os.listdir(self._root / path))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def files(self) -> Iterator[tuple[str, int]]:
        """Yield every file; see `Location`."""
        for directory, _, names in os.walk(self._root):
            for name in names:
                full = Path(directory, name)
                yield full.relative_to(self._root).as_posix(), full.lstat().st_size

    @contextmanager
    def _beside(self, path: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """A finished temporary file and its target; locked, so that no `i2am.storage.writing.staging.sweep` takes it."""
        self._plain.check(STAGING)
        target = self._plain.check_file(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._temporary_file() as lock:
            try:
                write_all(lock.fd, [data])
                os.fsync(lock.fd)
                yield lock.path, target
            finally:
                lock.path.unlink(missing_ok=True)  # gone if it was renamed

    def _temporary_file(self) -> FileLock:
        """Make and lock a temporary file; another one if a sweep took it before the lock."""
        while True:
            path = self._root / STAGING / f"{os.getpid()}.{os.urandom(8).hex()}.tmp"
            try:
                if (lock := try_lock(path)) is not None:
                    return lock
            except FileNotFoundError:  # no folder yet, or it was empty and swept away
                with suppress(FileExistsError):
                    path.parent.mkdir()

    def write(self, path: str, data: bytes) -> None:
        """Write a whole file atomically and durably; see `Location`."""
        with system_errors(f"{self.url}/{path}"), self._beside(path, data) as (beside, target):
            os.replace(beside, target)
            sync_directory(target.parent)

    def write_new(self, path: str, data: bytes) -> bool:
        """Write a file that must not exist yet; see `Location`."""
        with system_errors(f"{self.url}/{path}"), self._beside(path, data) as (beside, target):
            try:
                os.link(beside, target)
            except FileExistsError:
                return False
            sync_directory(target.parent)
            return True

    def remove(self, path: str) -> None:
        """Remove a file; see `Location`."""
        with system_errors(f"{self.url}/{path}"):
            self._plain.check(path.rpartition("/")[0])
            (self._root / path).unlink(missing_ok=True)
