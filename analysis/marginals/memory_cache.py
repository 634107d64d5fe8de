"""Marginals that this process read and checked lately, kept in memory up to a bound."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEMORY_CACHE_BYTES = 128 * 2**20  # bytes that one process keeps, at most
# What an entry takes besides its array, mostly its key: a run of many small samples has many entries.
ENTRY_BYTES = 2048
Array = NDArray[Any]


class MemoryCache:
    """The arrays used last, by key, shared by all threads; an array above a quarter of the bound is not kept.

    A key must contain everything that the array depends on.
    """

    def __init__(self, max_bytes: int = MEMORY_CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._arrays: OrderedDict[Hashable, Array] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._arrays

    def get(self, key: Hashable, make: Callable[[], Array]) -> Array:
        """Return the array of a key, read only; `make` may run twice if two threads ask at once."""
        with self._lock:
            found = self._arrays.get(key)
            if found is not None:
                self._arrays.move_to_end(key)
                return found
        made = np.asarray(make())
        made.flags.writeable = False
        if made.nbytes <= self.max_bytes // 4:
            with self._lock:
                if key not in self._arrays:
                    self._arrays[key] = made
                    self.bytes += made.nbytes + ENTRY_BYTES
                while self.bytes > self.max_bytes:
                    self.bytes -= self._arrays.popitem(last=False)[1].nbytes + ENTRY_BYTES
        return made

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._arrays.clear()
            self.bytes = 0


shared_cache = MemoryCache()  # the marginals of this process
