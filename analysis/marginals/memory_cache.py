"""Arrays that were read and checked lately, kept in memory up to a bound, shared by all threads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

RECALL_BYTES = 128 * 2**20
"""Bytes kept by one process, at most."""

ENTRY_BYTES = 2048
"""What an entry takes beside its array, its key above all: a run of many small samples has many."""

Array = NDArray[Any]


class MemoryCache:
    """Least recently used arrays by key; a key must stand for everything that the array depends on."""

    def __init__(self, most: int = RECALL_BYTES) -> None:
        self.most = most
        self._arrays: OrderedDict[Hashable, Array] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    @property
    def bytes(self) -> int:
        """Bytes kept now."""
        return self._bytes

    def __contains__(self, key: Hashable) -> bool:
        return key in self._arrays

    def get(self, key: Hashable, make: Callable[[], Array]) -> Array:
        """Return the array of a key, made if it is not kept; read only, since others share it."""
        with self._lock:
            found = self._arrays.get(key)
            if found is not None:
                self._arrays.move_to_end(key)
                return found
        made = np.asarray(make())
        made.flags.writeable = False
        if made.nbytes <= self.most // 4:
            with self._lock:
                if key not in self._arrays:
                    self._arrays[key] = made
                    self._bytes += made.nbytes + ENTRY_BYTES
                while self._bytes > self.most:
                    self._bytes -= self._arrays.popitem(last=False)[1].nbytes + ENTRY_BYTES
        return made

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._arrays.clear()
            self._bytes = 0


recent = MemoryCache()
"""The marginals of this process."""
