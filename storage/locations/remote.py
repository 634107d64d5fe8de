"""Runs on object stores and other file systems, through fsspec or obstore's fsspec classes.

There is no rename and no lock: an object is put whole, and two processes must not be given the same sample.
Object stores create an object exclusively, other file systems do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from i2am.storage.errors import InputError, MissingDependency
from i2am.storage.locations.base import STREAM_BYTES, TooLarge
from i2am.storage.locations.object_store import (
    get,
    is_object_store,
    list_below,
    object_filesystem,
    persistent,
    put_new,
    replace,
    store_errors,
)

_MERGE = 16 << 20
"""Neighbouring ranges are fetched together up to this many bytes."""


class RemoteLocation:
    """A prefix of an fsspec file system.

    Parameters
    ----------
    filesystem : fsspec.AbstractFileSystem
        The file system.
    prefix : str
        Path of the run on it.
    url : str
        What the user gave, for messages.
    """

    def __init__(self, filesystem: Any, prefix: str, url: str) -> None:
        self.root: Path | None = None
        self.url = url
        self._fs = filesystem
        self._prefix = prefix.rstrip("/")

    def __repr__(self) -> str:
        return f"RemoteLocation({self.url!r})"

    def _at(self, path: str) -> str:
        return f"{self._prefix}/{path}" if path else self._prefix

    def read(self, path: str, most: int | None = None) -> bytes:
        """Return a whole object; see `i2am.storage.locations.base.Location`."""
        with store_errors(f"{self.url}/{path}"):
            if is_object_store(self._fs):
                return persistent(lambda: get(self._fs, self._at(path), most))
            if most is not None and (size := self.size(path) or 0) > most:
                raise TooLarge(f"it has {size:,} bytes, more than {most:,}")
            return bytes(self._fs.cat_file(self._at(path)))

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]], size: int) -> list[bytes]:
        """Return byte ranges, neighbours fetched together; see `i2am.storage.locations.base.Location`."""
        merged: list[list[int]] = []
        places: list[tuple[int, int, int]] = []
        for start, stop in ranges:
            if merged and merged[-1][1] == start and stop - merged[-1][0] <= _MERGE:
                merged[-1][1] = stop
            else:
                merged.append([start, stop])
            places.append((len(merged) - 1, start, stop))
        parts: list[bytes] = []
        with store_errors(f"{self.url}/{path}"):
            for start, stop in merged:
                parts.append(self._range(path, start, stop))
                if len(parts[-1]) != stop - start:
                    raise ValueError(f"it ends before byte {stop} of {size}")
        return [parts[i][start - merged[i][0] : stop - merged[i][0]] for i, start, stop in places]

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield a whole object in blocks; see `i2am.storage.locations.base.Location`."""
        size = self.size(path)
        if size is None:
            raise FileNotFoundError(f"{self.url}/{path}")
        with store_errors(f"{self.url}/{path}"):
            for start in range(0, size, STREAM_BYTES):
                stop = min(size, start + STREAM_BYTES)
                yield self._range(path, start, stop)

    def _range(self, path: str, start: int, stop: int) -> bytes:
        return bytes(persistent(lambda: self._fs.cat_file(self._at(path), start=start, end=stop)))

    def size(self, path: str) -> int | None:
        """Return the size in bytes or None; see `i2am.storage.locations.base.Location`."""
        with store_errors(f"{self.url}/{path}"):
            try:
                info = persistent(lambda: self._fs.info(self._at(path)))
            except FileNotFoundError:
                return None
        return int(info["size"]) if info["type"] == "file" else None

    def names(self, path: str) -> list[str]:
        """Return the names below a prefix; see `i2am.storage.locations.base.Location`."""
        with store_errors(f"{self.url}/{path}"):
            self._fs.invalidate_cache(self._at(path))
            try:
                found = persistent(lambda: self._fs.ls(self._at(path), detail=False))
            except FileNotFoundError:
                return []
        names = {str(name).rstrip("/").rsplit("/", 1)[-1] for name in found}
        return sorted(names - {self._at(path).rsplit("/", 1)[-1]} if path == "" else names)

    def files(self) -> Iterator[tuple[str, int]]:
        """Yield every object; see `i2am.storage.locations.base.Location`."""
        if is_object_store(self._fs):
            with store_errors(self.url):
                yield from persistent(lambda: list_below(self._fs, self._prefix))
            return
        self._fs.invalidate_cache()
        with store_errors(self.url):
            found = persistent(lambda: self._fs.find(self._prefix, detail=True))
        base = self._prefix.strip("/")
        for name, info in found.items():
            yield name.strip("/")[len(base) + 1 :], int(info["size"])

    def write(self, path: str, data: bytes) -> None:
        """Put one object; see `i2am.storage.locations.base.Location`."""
        with store_errors(f"{self.url}/{path}"):
            persistent(lambda: self._fs.pipe_file(self._at(path), data))

    def write_new(self, path: str, data: bytes) -> bool:
        """Put one object if there is none yet; races are safe on object stores alone; see `Location`."""
        if is_object_store(self._fs):
            with store_errors(f"{self.url}/{path}"):
                return persistent(lambda: put_new(self._fs, self._at(path), data))
        if self.size(path) is not None:
            return False
        self.write(path, data)
        return True

    def replace(self, path: str, old: bytes, new: bytes) -> bool:
        """Put one object in place of one with a certain content; races are safe on object stores alone.

        Parameters
        ----------
        path : str
            Path below the run.
        old, new : bytes
            What it must hold, and what it shall hold.

        Returns
        -------
        bool
            False if it held something else, or was gone.
        """
        with store_errors(f"{self.url}/{path}"):
            if is_object_store(self._fs):
                return replace(self._fs, self._at(path), old, new)
            try:
                same = self.read(path) == old
            except FileNotFoundError:
                return False
            if same:
                self.write(path, new)
            return same

    def upload(self, path: str, source: Path) -> None:
        """Put a local file as one object.

        Parameters
        ----------
        path : str
            Path below the run.
        source : Path
            Local file.
        """
        with store_errors(f"{self.url}/{path}"):
            # A large file goes up in parts. Where the last answer was lost, they are found joined already.
            persistent(lambda: self._fs.put_file(str(source), self._at(path)), again=FileNotFoundError)

    def remove(self, path: str) -> None:
        """Remove an object; see `i2am.storage.locations.base.Location`."""
        with store_errors(f"{self.url}/{path}"):
            try:
                persistent(lambda: self._fs.rm_file(self._at(path)))
            except FileNotFoundError:
                return


def open_remote(url: str, storage_options: Mapping[str, Any] | None) -> RemoteLocation:
    """Open a URL through fsspec, or through obstore where fsspec lacks the protocol's package.

    Parameters
    ----------
    url : str
        ``protocol://...``.
    storage_options : mapping, optional
        Options of the file system.

    Returns
    -------
    RemoteLocation
        The run's location.

    Raises
    ------
    InputError
        If no file system has such a protocol.
    MissingDependency
        If the package that speaks it is absent.
    """
    import fsspec

    options = dict(storage_options or {})
    protocol = url.split("://", 1)[0]
    if (filesystem := object_filesystem(protocol, options)) is not None:
        return RemoteLocation(filesystem, url.split("://", 1)[1], url)
    try:
        filesystem, prefix = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        try:
            from obstore.fsspec import FsspecStore
        except ImportError:
            raise MissingDependency(
                f"URL {url!r}: no package for the protocol {protocol!r}",
                got=str(error),
                remedy="install the fsspec package it names, or obstore",
            ) from error
        filesystem, prefix = FsspecStore(protocol, **options), url.split("://", 1)[1]
    except ValueError as error:
        raise InputError(f"URL {url!r}", expected="a protocol that fsspec knows", got=str(error)) from error
    return RemoteLocation(filesystem, str(prefix), url)
