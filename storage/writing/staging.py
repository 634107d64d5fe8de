"""Where the files of a sample wait until they are complete, and the step that makes the sample exist.

On a local disk they wait in ``.staging/<sample>/`` inside the run, held by a lock on the file ``lock`` in it.
Elsewhere they wait in a temporary directory of this machine, and the sample is held by a lease
(`i2am.storage.writing.lease`).
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from i2am.storage.errors import AlreadyExists, SampleBusy, StoreUnavailable
from i2am.storage.format.file_names import sample_file, sample_of_file
from i2am.storage.locations.base import STAGING, Location, system_errors
from i2am.storage.locations.file_lock import LOCK, FileLock, locked_folder, remove_abandoned, try_lock
from i2am.storage.locations.local import LocalLocation, sync_directory
from i2am.storage.locations.no_links import check_folder
from i2am.storage.locations.remote import RemoteLocation
from i2am.storage.writing.lease import Lease

_PREFIX = "i2am-sample-"
"""Begins the names of the temporary folders of samples on their way to object storage."""


class Staging(Protocol):
    """A private place for one sample's files."""

    folder: Path

    def prepare(self, leftovers: Iterable[str]) -> None:
        """Remove files that a crashed writer may have put into place without a commit record."""
        ...

    def publish(self, files: Mapping[str, Path], record: str, content: bytes) -> None:
        """Move the files to their places, then write the commit record; after an error none remains."""
        ...

    def replace(self, path: str, old: bytes | None, data: bytes) -> None:
        """Write one file of a committed sample anew; `SampleBusy` unless it is still as `old`."""
        ...

    def discard(self) -> None:
        """Remove what is left here and release the sample."""
        ...


class LocalStaging:
    """Staging on the run's own file system. Raises `SampleBusy` if another writer holds the sample."""

    def __init__(self, root: Path, sample: str) -> None:
        self._root = root
        self.folder = root / STAGING / sample_file(sample)
        with system_errors(str(self.folder)):
            self._lock: FileLock | None = _lock(root, self.folder.name)
            if self._lock is None:
                raise SampleBusy(
                    f"sample {sample!r} is being written by another process",
                    remedy="wait for it, or give each process its own samples",
                )
            _clear(self.folder)

    def prepare(self, leftovers: Iterable[str]) -> None:
        with system_errors(str(self._root)):
            _unlink(self._root, leftovers)

    def publish(self, files: Mapping[str, Path], record: str, content: bytes) -> None:
        placed: list[Path] = []
        with system_errors(str(self._root)):
            try:
                for folder in {path.rpartition("/")[0] for path in (*files, record)}:
                    check_folder(self._root, folder)
                for path, source in files.items():
                    placed.append(self._root / path)
                    os.replace(source, self._root / path)
                for directory in {path.parent for path in placed}:
                    sync_directory(directory)
                source = self.folder / "record"
                with source.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                placed.append(self._root / record)
                os.replace(source, self._root / record)
                sync_directory(placed[-1].parent)
            except BaseException:
                for place in reversed(placed):
                    place.unlink(missing_ok=True)
                raise

    def replace(self, path: str, old: bytes | None, data: bytes) -> None:
        LocalLocation(self._root).write(path, data)  # the lock is held, so nobody else writes

    def discard(self) -> None:
        if self._lock is not None:
            with self._lock, system_errors(str(self.folder)):
                self._lock = None
                _remove(self.folder)


def _lock(root: Path, name: str) -> FileLock | None:
    """Lock a staging directory, made where needed; None if another process holds it."""
    check_folder(root, f"{STAGING}/{name}")
    folder = root / STAGING / name
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return try_lock(folder / LOCK)
        except FileNotFoundError:  # the last writer has just removed the directory, or the one above it
            continue


def _clear(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        elif entry.name != LOCK:
            os.unlink(entry.path)


def _remove(folder: Path) -> None:
    _clear(folder)
    (folder / LOCK).unlink(missing_ok=True)
    _remove_if_empty(folder)


def _unlink(root: Path, paths: Iterable[str]) -> None:
    for path in paths:
        check_folder(root, path.rpartition("/")[0])
        with suppress(NotADirectoryError):  # a file manager's file in place of a folder
            (root / path).unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        busy = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)  # or another process was quicker
        if not busy and folder.is_dir() and not os.listdir(folder):
            raise


def sweep(root: Path, leftovers: Callable[[str], Iterable[str]]) -> None:
    """Remove what crashed writers left, and ``.staging`` itself if it is empty then.

    A sample that is not committed has files in place only while it has an entry in ``.staging``, so the files
    and the entry go together. `leftovers` maps a sample id to the files that it may have in place without
    being committed. What living writers hold is left alone.
    """
    staging = root / STAGING
    with system_errors(str(staging)):
        check_folder(root, STAGING)
        try:
            entries = list(os.scandir(staging))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if (lock := _lock(root, entry.name)) is not None:
                    with lock:
                        _unlink(root, leftovers(sample_of_file(entry.name)))
                        _remove(Path(entry.path))
            elif entry.name.endswith(".tmp") and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    if (lock := try_lock(Path(entry.path), create=False)) is not None:
                        with lock:
                            os.unlink(entry.path)
        _remove_if_empty(staging)


class RemoteStaging:
    """Staging in a temporary directory, uploaded object by object while a lease is held.

    Raises `SampleBusy` if another writer holds the sample.
    """

    def __init__(self, location: RemoteLocation, sample: str, amends: bool) -> None:
        self._location, self._sample = location, sample
        self._available = True
        for abandoned in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError):  # another user's
                remove_abandoned(abandoned)
        self._folder_lock = locked_folder(Path(tempfile.gettempdir()), _PREFIX)
        self.folder = self._folder_lock.path.parent
        try:
            self._lease = Lease(location, sample, amends=amends)
        except BaseException:
            self._remove_folder()
            raise

    def _remove_folder(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._folder_lock.release()

    def prepare(self, leftovers: Iterable[str]) -> None:
        if self._lease.taken_over:
            for path in leftovers:
                self._lease.check()
                self._location.remove(path)

    def publish(self, files: Mapping[str, Path], record: str, content: bytes) -> None:
        placed: list[str] = []
        try:
            for path, source in files.items():
                placed.append(path)
                self._put(path, source)
            self._lease.check()
            placed.append(record)
            if not self._location.write_new(record, content):
                raise AlreadyExists(f"sample {self._sample!r} of {self._location.url} is committed")
        except (SampleBusy, AlreadyExists):
            raise  # what lies there now belongs to another writer
        except StoreUnavailable:
            self._available = False  # the lease stays, so that the next writer clears up
            raise
        except BaseException:
            try:
                for path in reversed(placed):
                    self._lease.check()
                    self._location.remove(path)
            except (StoreUnavailable, SampleBusy):
                self._available = False
            raise

    def _put(self, path: str, source: Path) -> None:
        """Upload a file; one that is there, without a record, was left or put late by a former writer."""
        for _ in range(2):
            self._lease.check()
            if self._location.upload(path, source):
                return
            self._lease.check()
            self._location.remove(path)
        raise SampleBusy(f"{path} is being written by another process", remedy="run again when it is done")

    def replace(self, path: str, old: bytes | None, data: bytes) -> None:
        self._lease.check()
        place = self._location
        if not (place.write_new(path, data) if old is None else place.replace(path, old, data)):
            raise SampleBusy(
                f"{path} is being written by another process", remedy="run again when it is done"
            )

    def discard(self) -> None:
        if self.folder.exists():
            self._remove_folder()
        self._lease.release(remove=self._available)


def stage(location: Location, sample: str, *, amends: bool = False) -> Staging:
    """Open the staging place of a sample, empty; raise `SampleBusy` if another writer holds the sample.

    `amends` says that the sample is committed, and stays so.
    """
    if isinstance(location, LocalLocation):
        return LocalStaging(Path(location.url), sample)
    if isinstance(location, RemoteLocation):
        return RemoteStaging(location, sample, amends)
    raise TypeError(f"no staging for {location!r}")
