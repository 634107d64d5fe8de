"""One BLAS thread for each worker thread, while the kernel runs.

Parallelism comes from Dask, one task a thread. A BLAS with threads of its own, called from each of them,
makes threads that wait for one another: on two busy cores the kernel took ten times the CPU time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = Lock()
_inside = 0
_before: list[int] = []


@cache
def _libraries() -> list[Any]:
    """The BLAS libraries of this process, looked up once: that takes milliseconds."""
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def _set(threads: list[int]) -> None:
    """Set the number of threads of each library, whichever thread asks.

    From 3.8 on, threadpoolctl hears only the thread that came first, as long as it lives. The limit here is
    counted over all threads, so each is heard, and nobody is shut out afterwards.
    """
    for library, number in zip(_libraries(), threads, strict=True):
        release = getattr(library, "clear_controlling_thread", lambda force: None)
        release(force=True)
        library.set_num_threads(number)
        release(force=True)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread until the last of the callers that overlap in this process has left.

    The limit belongs to the whole process, so it is counted: the first to enter sets it, the last to leave
    restores what was there before.
    """
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = [library.num_threads for library in _libraries()]
            _set([1] * len(_before))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _set(_before)
