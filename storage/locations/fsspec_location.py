"""Runs on any file system that fsspec knows. Exclusive puts and replacements have races here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from i2am.storage.errors import InputError, MissingDependency
from i2am.storage.locations.base import TooLarge
from i2am.storage.locations.remote import RemoteLocation, store_errors

CLOUDS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
"""Protocols for which obstore, of the extra ``s3``, is enough."""


class FsspecLocation(RemoteLocation):
    """A prefix of a file system."""

    def __init__(self, filesystem: Any, prefix: str, url: str) -> None:
        super().__init__(url)
        self._fs = filesystem
        self._prefix = prefix.rstrip("/")

    def _at(self, path: str) -> str:
        return f"{self._prefix}/{path}" if path else self._prefix

    def read(self, path: str, most: int | None = None) -> bytes:
        with store_errors(f"{self.url}/{path}"):
            if most is not None and (size := self.size(path) or 0) > most:
                raise TooLarge(f"it has {size:,} bytes, more than {most:,}")
            return bytes(self._fs.cat_file(self._at(path)))

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        with store_errors(f"{self.url}/{path}"):
            return bytes(self._fs.cat_file(self._at(path), start=start, end=stop))

    def size(self, path: str) -> int | None:
        with store_errors(f"{self.url}/{path}"):
            try:
                info = self._fs.info(self._at(path))
            except FileNotFoundError:
                return None
        return int(info["size"]) if info["type"] == "file" else None

    def names(self, path: str) -> list[str]:
        own = self._at(path).strip("/")
        with store_errors(f"{self.url}/{path}"):
            self._fs.invalidate_cache(self._at(path))
            try:
                found = {str(name).strip("/") for name in self._fs.ls(self._at(path), detail=False)}
            except FileNotFoundError:
                return []
        return sorted(name.rsplit("/", 1)[-1] for name in found - {own})

    def files(self) -> Iterator[tuple[str, int]]:
        self._fs.invalidate_cache()
        with store_errors(self.url):
            found = self._fs.find(self._prefix, detail=True)
        base = self._prefix.strip("/")
        for name, info in found.items():
            yield name.strip("/")[len(base) + 1 :], int(info["size"])

    def write(self, path: str, data: bytes) -> None:
        with store_errors(f"{self.url}/{path}"):
            self._fs.pipe_file(self._at(path), data)

    def write_new(self, path: str, data: bytes) -> bool:
        if self.size(path) is not None:
            return False
        self.write(path, data)
        return True

    def replace(self, path: str, old: bytes, new: bytes) -> bool:
        try:
            same = self.read(path) == old
        except FileNotFoundError:
            return False
        if same:
            self.write(path, new)
        return same

    def upload(self, path: str, source: Path) -> bool:
        if self.size(path) is not None:
            return False
        with store_errors(f"{self.url}/{path}"):
            self._fs.put_file(str(source), self._at(path))
        return True

    def remove(self, path: str) -> None:
        with store_errors(f"{self.url}/{path}"):
            try:
                self._fs.rm_file(self._at(path))
            except FileNotFoundError:
                return


def open_fsspec(url: str, options: Mapping[str, Any]) -> FsspecLocation:
    """Open a URL through fsspec, or through obstore's file systems where the protocol's package is absent."""
    import fsspec

    protocol, _, path = url.partition("://")
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        try:
            from obstore.fsspec import FsspecStore
        except ImportError:
            raise MissingDependency(
                f"URL {url!r}: no package for the protocol {protocol!r}",
                got=str(error),
                remedy="pip install 'i2am[s3]'"
                if protocol in CLOUDS
                else "install the fsspec package it names",
            ) from error
        try:
            filesystem = FsspecStore(protocol, **options)
        except Exception as other:
            raise _wrong_options(url, options, other) from other
    except ValueError as error:
        if "protocol" not in str(error).lower():
            raise _wrong_options(url, options, error) from error
        raise InputError(f"URL {url!r}", expected="a protocol that fsspec knows", got=str(error)) from error
    except (TypeError, LookupError, AttributeError) as error:
        raise _wrong_options(url, options, error) from error
    return FsspecLocation(filesystem, str(path), url)


def _wrong_options(url: str, options: Mapping[str, Any], error: Exception) -> InputError:
    return InputError(
        f"URL {url!r}",
        expected="storage_options that its file system takes",
        got=f"{', '.join(options) or 'none'}: {type(error).__name__}: {str(error)[:200]}",
        remedy="correct storage_options",
    )
