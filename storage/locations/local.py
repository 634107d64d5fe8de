"""Runs in a directory of this machine: written by rename and fsync, never through a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from i2am.storage.locations.base import STAGING, STREAM_BYTES, Location, TooLarge, system_errors, write_all
from i2am.storage.locations.file_lock import FileLock, try_lock
from i2am.storage.locations.no_links import check_folder, open_file


def sync_directory(path: Path) -> None:
    """Write a directory's entries to the medium."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it that are missing, and write their entries to the medium."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        sync_directory(made.parent)


class LocalLocation(Location):
    """A directory of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = root
        self._checked = {""}
        self.url = str(root)

    def __repr__(self) -> str:
        return f"LocalLocation({self.url!r})"

    def _check(self, folder: str) -> None:
        """Refuse a folder that is reached through a link; one that exists is looked at once."""
        if folder not in self._checked:
            check_folder(self._root, folder)
            if os.path.isdir(f"{self.url}/{folder}"):
                self._checked.add(folder)

    @contextmanager
    def _open(self, path: str, size: int | None = None) -> Iterator[int]:
        """Open a file for reading; raise ValueError unless it has `size` bytes."""
        whole = f"{self.url}/{path}"
        with system_errors(whole):
            self._check(path.rpartition("/")[0])
            try:
                fd = open_file(whole)
            except NotADirectoryError as error:  # a file in place of a folder
                raise FileNotFoundError(*error.args) from error
            try:
                if size is not None and (found := os.fstat(fd).st_size) != size:
                    raise ValueError(f"it has {found} bytes instead of {size}")
                yield fd
            finally:
                os.close(fd)

    def read(self, path: str, most: int | None = None) -> bytes:
        with self._open(path) as fd, open(fd, "rb", closefd=False) as file:
            size = os.fstat(fd).st_size
            if most is not None and size > most:
                raise TooLarge(f"it has {size:,} bytes, more than {most:,}")
            return file.read()

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]], size: int) -> list[bytes]:
        with self._open(path, size) as fd:
            return [os.pread(fd, stop - start, start) for start, stop in ranges]

    def read_into(self, path: str, start: int, targets: Sequence[np.ndarray[Any, Any]], size: int) -> None:
        """Read consecutive bytes from `start` on straight into C-contiguous arrays, one after another.

        Raises ValueError if the file has not `size` bytes, or ends too early.
        """
        views = [memoryview(target.reshape(-1).view(np.uint8).data) for target in targets]
        with self._open(path, size) as fd:
            while views:
                got = os.preadv(fd, views, start)
                if got == 0:
                    raise ValueError(f"it ends before byte {start + len(views[0])}")
                start += got
                while views and got >= len(views[0]):
                    got -= len(views.pop(0))
                if views:
                    views[0] = views[0][got:]

    def stream(self, path: str) -> Iterator[bytes]:
        with self._open(path) as fd:
            while block := os.read(fd, STREAM_BYTES):
                yield block

    def size(self, path: str) -> int | None:
        whole = f"{self.url}/{path}"
        with system_errors(whole):
            self._check(path.rpartition("/")[0])
            try:
                found = os.lstat(whole)  # a pathlib.Path would cost more than the question
            except (FileNotFoundError, NotADirectoryError):
                return None
            return found.st_size if stat.S_ISREG(found.st_mode) else None

    def names(self, path: str) -> list[str]:
        with system_errors(f"{self.url}/{path}"):
            self._check(path)
            try:
                return sorted(os.listdir(self._root / path))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def files(self) -> Iterator[tuple[str, int]]:
        for directory, _, names in os.walk(self._root):
            for name in names:
                full = Path(directory, name)
                with suppress(FileNotFoundError):  # a writer moved or removed it
                    yield full.relative_to(self._root).as_posix(), full.lstat().st_size

    def write(self, path: str, data: bytes) -> None:
        with self._temporary(path, data) as (temporary, target):
            os.replace(temporary, target)
            sync_directory(target.parent)

    def write_new(self, path: str, data: bytes) -> bool:
        with self._temporary(path, data) as (temporary, target):
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            sync_directory(target.parent)
            return True

    @contextmanager
    def _temporary(self, path: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """Make a synced file, locked so that a sweep leaves it alone; yield it and its target."""
        with system_errors(f"{self.url}/{path}"):
            self._check(STAGING)
            self._check(path.rpartition("/")[0])
            target = self._root / path
            make_folders(target.parent)
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

    def remove(self, path: str) -> None:
        with system_errors(f"{self.url}/{path}"):
            self._check(path.rpartition("/")[0])
            (self._root / path).unlink(missing_ok=True)
