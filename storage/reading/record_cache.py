"""Commit records in memory: each is read once, and a scan over a remote run reads ahead."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from threading import Lock

from i2am.storage.errors import DamagedSample
from i2am.storage.format.commit_record import CommitRecord, read_record
from i2am.storage.format.header import Header
from i2am.storage.locations.base import Location

CAPACITY = 1024
"""Records in memory."""

SCAN_AFTER = 4
"""Samples asked for in the run's order before the next ones are read ahead."""

AHEAD = 256
"""Records that are read ahead, `READERS` at a time; see benchmarks/records.py."""

READERS = 64


class RecordCache:
    """Reads the records of some samples; travels to other processes empty."""

    def __init__(self, location: Location, header: Header, samples: tuple[str, ...]) -> None:
        self._location, self._header, self._samples = location, header, samples
        self._records: OrderedDict[str, CommitRecord] = OrderedDict()
        self._next = 0
        self._in_order = 0
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[RecordCache], tuple[Location, Header, tuple[str, ...]]]:
        return RecordCache, (self._location, self._header, self._samples)

    def get(self, sample: str) -> CommitRecord:
        """Return the record of a sample, or raise `DamagedSample`."""
        if self._location.root is None:
            self._read_ahead(sample)
        return self._read(sample)

    def _read_ahead(self, sample: str) -> None:
        """Read the samples that a scan will ask for next, if this is one."""
        with self._lock:
            position = self._positions[sample]
            self._in_order = self._in_order + 1 if position == self._next else 1
            self._next = position + 1
            if self._in_order <= SCAN_AFTER or sample in self._records:
                return
        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(self._read_quietly, self._samples[position : position + AHEAD]))

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {sample: position for position, sample in enumerate(self._samples)}

    def _read(self, sample: str) -> CommitRecord:
        with self._lock:
            found = self._records.get(sample)
            if found is not None:
                self._records.move_to_end(sample)
                return found
        found = read_record(self._location, self._header, sample)
        with self._lock:
            self._records[sample] = found
            while len(self._records) > CAPACITY:
                self._records.popitem(last=False)
        return found

    def _read_quietly(self, sample: str) -> None:
        with suppress(DamagedSample):  # raised when the sample itself is asked for
            self._read(sample)
