"""What runs on object stores and on fsspec file systems have in common.

There is no rename and no lock: an object is put whole. Object stores create and replace an object by one
conditional request; on other file systems two writers may come between each other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from i2am.storage.errors import NoPermission, StoreUnavailable
from i2am.storage.locations.base import STREAM_BYTES, Location, system_errors
from i2am.storage.redaction import redacted

_MERGE = 16 << 20
"""Neighbouring ranges are fetched together up to this many bytes."""


class RemoteLocation(Location):
    """A location that is no local directory.

    `write_new` and `replace` take an object that has the new content already for their own, put by a request
    whose answer was lost; so contents of different writers must differ.
    """

    def __init__(self, url: str) -> None:
        self.root = None
        self.url = url

    def __repr__(self) -> str:
        return redacted(f"{type(self).__name__}({self.url!r})")

    @abstractmethod
    def read_range(self, path: str, start: int, stop: int) -> bytes: ...

    @abstractmethod
    def replace(self, path: str, old: bytes, new: bytes) -> bool:
        """Put an object in place of one whose content is `old`; return False if there is none."""

    @abstractmethod
    def upload(self, path: str, source: Path) -> bool:
        """Put a local file as one object; return False if another is there."""

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]], size: int) -> list[bytes]:
        """Return byte ranges; neighbours are fetched together."""
        merged: list[list[int]] = []
        places: list[tuple[int, int, int]] = []
        for start, stop in ranges:
            if merged and merged[-1][1] == start and stop - merged[-1][0] <= _MERGE:
                merged[-1][1] = stop
            else:
                merged.append([start, stop])
            places.append((len(merged) - 1, start, stop))
        parts: list[bytes] = []
        for start, stop in merged:
            parts.append(self.read_range(path, start, stop))
            if len(parts[-1]) != stop - start:
                raise ValueError(f"it ends before byte {stop} of {size}")
        return [parts[i][start - merged[i][0] : stop - merged[i][0]] for i, start, stop in places]

    def stream(self, path: str) -> Iterator[bytes]:
        size = self.size(path)
        if size is None:
            raise FileNotFoundError(f"{self.url}/{path}")
        for start in range(0, size, STREAM_BYTES):
            yield self.read_range(path, start, min(size, start + STREAM_BYTES))


@contextmanager
def store_errors(place: str) -> Iterator[None]:
    """Turn obstore's errors, and the system's, into the project's; `FileNotFoundError` passes."""
    try:
        with system_errors(place):
            yield
    except Exception as error:
        if not type(error).__module__.startswith("obstore") or isinstance(error, FileNotFoundError):
            raise
        first = str(error).strip().splitlines()[0][:300]
        if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):
            raise NoPermission(
                f"no permission for {place}", got=first, remedy="check credentials and the bucket's policy"
            ) from error
        raise StoreUnavailable(
            f"{place}: the object store does not answer as it should",
            got=first,
            remedy="check endpoint, bucket and network, and run again: what is committed is kept",
        ) from error
