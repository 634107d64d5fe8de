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
_limits: Any = None


@cache
def _controller() -> Any:
    """The libraries of this process, looked up once: that takes milliseconds."""
    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread until the last of the callers that overlap in this process has left.

    The limit belongs to the whole process, so it is counted: the first to enter sets it, the last to leave
    restores what was there before.
    """
    global _inside, _limits
    with _lock:
        if _inside == 0:
            _limits = _controller().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limits.restore_original_limits()
