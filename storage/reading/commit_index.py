"""An index of the commit records in one file, ``commits/.index``: a large run is looked through in one read.

A sample exists if and only if its record is there. An entry of the index only saves reading the record, and
only while the record's tag is the one noted: size and time of change on a local disk, size and entity tag on
object storage. So an index that is stale, damaged or gone costs time and nothing else.

First line: JSON with format, run id, number of entries, and the SHA-256 of all that follows. Then a line for
each record: its file name, its tag, and its document as JSON, with one space between.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from i2am.storage.errors import DamagedSample
from i2am.storage.format.commit_record import FOLDER, CommitRecord, build_record, read_record
from i2am.storage.format.file_names import sample_file
from i2am.storage.format.header import Header, load_header
from i2am.storage.format.marginals_only import need_attention
from i2am.storage.format.signed_json import DocumentError, sha256
from i2am.storage.locations.base import STAGING, Location, TooLarge
from i2am.storage.locations.open import locate

NAME = ".index"
"""File name; no encoded sample id begins with a dot."""

INDEX = f"{FOLDER}/{NAME}"
"""Path below the run."""

FORMAT = 1
"""Of the index, not of the run."""

ENOUGH = 256
"""Records without an entry from which it pays to write the index anew."""

MAX_BYTES = 1 << 29
"""Bytes of an index that are read."""

_READERS = 16
"""Records read at a time: object storage answers slowly, but many at once."""


class CommitIndex:
    """The entries of an index that fit the records as they are now.

    Parameters
    ----------
    header : Header
        The run's header.
    entries : mapping
        File name of a record to (tag, JSON document).
    """

    def __init__(self, header: Header, entries: Mapping[str, tuple[str, bytes]]) -> None:
        self._header = header
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def tag(self, name: str) -> str | None:
        """Return the tag that is noted for a record.

        Parameters
        ----------
        name : str
            File name of the record.

        Returns
        -------
        str or None
            None where there is no entry.
        """
        entry = self._entries.get(name)
        return entry[0] if entry is not None else None

    def record(self, sample: str) -> CommitRecord | None:
        """Return the record of a sample.

        Parameters
        ----------
        sample : str
            A declared sample.

        Returns
        -------
        CommitRecord or None
            None where there is no entry, or one that makes no sense.
        """
        entry = self._entries.get(f"{sample_file(sample)}.json")
        if entry is None:
            return None
        try:
            # The digest of the whole index covers it.
            return build_record(json.loads(entry[1]), self._header, sample, signed=True)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None

    def only(self, tags: Mapping[str, str]) -> CommitIndex:
        """Return the entries whose tags are these.

        Parameters
        ----------
        tags : mapping
            File name of a record to its tag now.

        Returns
        -------
        CommitIndex
            A new index.
        """
        fit = {name: entry for name, entry in self._entries.items() if entry[0] == tags.get(name)}
        return CommitIndex(self._header, fit)


def parse_index(data: bytes, header: Header) -> CommitIndex:
    """Read an index, all entries, whether they are stale or not.

    Parameters
    ----------
    data : bytes
        Content of the file.
    header : Header
        The run's header.

    Returns
    -------
    CommitIndex
        Its entries.

    Raises
    ------
    DocumentError
        If it is damaged, or belongs to another run.
    """
    first, _, body = data.partition(b"\n")
    try:
        said = json.loads(first)
        wanted = {"format": FORMAT, "run_id": header.run_id, "entries": said["entries"]}
        if _first_line(wanted, body) != first:
            raise ValueError("its digest disagrees with its content, or it belongs to another run")
        parts = [line.split(b" ", 2) for line in body.splitlines()]
        entries = {name.decode("ascii"): (tag.decode("ascii"), text) for name, tag, text in parts}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DocumentError(str(error)) from error
    return CommitIndex(header, entries)


def load_index(location: Location, header: Header) -> CommitIndex | None:
    """Read the index of a run, without the entries that are stale.

    Parameters
    ----------
    location : Location
        Where the run lives.
    header : Header
        The run's header.

    Returns
    -------
    CommitIndex or None
        None where there is none, or one that is damaged: the records themselves are read then.
    """
    try:
        return parse_index(location.read(INDEX, MAX_BYTES), header).only(location.tags(FOLDER))
    except (FileNotFoundError, TooLarge, DocumentError):
        return None


def compact(
    path: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    least: int = 1,
    on_record: Callable[[int, int], None] | None = None,
) -> int:
    """Write the index of a run anew, if enough records lack a fitting entry.

    Any number of processes may do so, also while samples are written: the last one's index stands, and is
    right in what it says.

    Parameters
    ----------
    path : str or path-like
        The run.
    storage_options : mapping, optional
        Options of the file system, for URLs.
    least : int
        Nothing is written where fewer records lack an entry.
    on_record : callable, optional
        Called with the number of records that were read, and that have to be.

    Returns
    -------
    int
        Entries of the index; 0 where none was written.

    Raises
    ------
    NotFound, NotARun, NewerFormat, DamagedRun
        If the run cannot be opened.
    NoAnswer
        If the run was exported with its marginals alone: nothing is written into it.
    StorageFull, NoPermission
        If the index cannot be written.
    """
    location = locate(path, storage_options)
    header = load_header(location)
    need_attention(header.attributes, location.url, "an index of commit records")
    tags = location.tags(FOLDER)
    wanted = {f"{sample_file(sample)}.json": sample for sample in header.samples}
    names = [name for name in tags if name in wanted and tags[name]]
    old = load_index(location, header) or CommitIndex(header, {})
    lacking = [name for name in names if old.tag(name) != tags[name]]
    if len(lacking) < max(1, least):
        return 0
    samples = [wanted[name] for name in lacking]
    fresh = dict(zip(lacking, _read_many(location, header, samples, on_record), strict=True))
    lines = []
    for name in names:
        kept = fresh.get(name) or old.record(wanted[name])
        if kept is not None:
            document = json.dumps(kept.to_json(), sort_keys=True, separators=(",", ":"))
            lines.append(f"{name} {tags[name]} {document}\n")
    body = "".join(lines).encode("ascii")
    first = _first_line({"format": FORMAT, "run_id": header.run_id, "entries": len(lines)}, body)
    location.write(INDEX, first + b"\n" + body)
    if location.root is not None:
        with suppress(OSError):  # somebody is writing
            (location.root / STAGING).rmdir()
    return len(lines)


def _read_many(
    location: Location,
    header: Header,
    samples: Sequence[str],
    on_record: Callable[[int, int], None] | None,
) -> list[CommitRecord | None]:
    """Records of samples, some at a time; None for one that is damaged."""
    found = []
    with ThreadPoolExecutor(_READERS) as readers:
        for record in readers.map(lambda sample: _sound(location, header, sample), samples):
            found.append(record)
            if on_record is not None:
                on_record(len(found), len(samples))
    return found


def _sound(location: Location, header: Header, sample: str) -> CommitRecord | None:
    try:
        return read_record(location, header, sample)
    except DamagedSample:
        return None


def _first_line(said: Mapping[str, Any], body: bytes) -> bytes:
    return json.dumps({**said, "sha256": sha256(body)}, sort_keys=True).encode("ascii")
