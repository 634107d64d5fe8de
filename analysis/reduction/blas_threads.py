"""Hold BLAS to one thread while the kernel runs: its threads and Dask's would wait for one another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = Lock()
_callers = 0
_before: list[int] = []


@cache
def _libraries() -> list[Any]:
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def _set(threads: list[int]) -> None:
    """Set the number of threads of each library.

    From 3.8 on, threadpoolctl obeys only the first thread that set a limit, as long as that thread lives.
    The control is released before and after, so that every thread can set the limit.
    """
    for library, number in zip(_libraries(), threads, strict=True):
        release = getattr(library, "clear_controlling_thread", lambda force: None)
        release(force=True)
        library.set_num_threads(number)
        release(force=True)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread: the first caller of this process sets it, the last to leave restores it."""
    global _callers, _before
    with _lock:
        if _callers == 0:
            _before = [library.num_threads for library in _libraries()]
            _set([1] * len(_before))
        _callers += 1
    try:
        yield
    finally:
        with _lock:
            _callers -= 1
            if _callers == 0:
                _set(_before)
