"""A run's commit records as a reader wants them: one by one, or by the index where many are asked for."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from i2am.storage.format.commit_record import CommitRecord, read_record
from i2am.storage.format.header import Header
from i2am.storage.locations.base import Location
from i2am.storage.reading.commit_index import CommitIndex, load_index

FEW = 8
"""Records that are read one by one before the index is: it may be large, and a question small."""

KEPT = 1024
"""Records kept in memory."""


class RecordCache:
    """Reads records, and keeps those used lately; travels to other processes without them.

    Parameters
    ----------
    location : Location
        Where the run lives.
    header : Header
        The run's header.
    """

    def __init__(self, location: Location, header: Header) -> None:
        self._location = location
        self._header = header
        self._kept: OrderedDict[str, CommitRecord] = OrderedDict()
        self._read = 0
        self._index: CommitIndex | None = None
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[RecordCache], tuple[Location, Header]]:
        return RecordCache, (self._location, self._header)

    def get(self, sample: str) -> CommitRecord:
        """Return the record of a sample.

        Parameters
        ----------
        sample : str
            A committed sample.

        Returns
        -------
        CommitRecord
            Checked against its own digest and the run.

        Raises
        ------
        DamagedSample
            If the record is missing, damaged, or another's.
        """
        with self._lock:
            found = self._kept.get(sample)
            if found is not None:
                self._kept.move_to_end(sample)
                return found
            if self._read == FEW:
                self._index = load_index(self._location, self._header)
            self._read += 1
            index = self._index
        found = index.record(sample) if index is not None else None
        found = found or read_record(self._location, self._header, sample)
        with self._lock:
            self._kept[sample] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found
