"""Forked child processes: threads do not survive a fork, and who waits for one waits for ever.

What needs a thread of its parent is refused. Dask's own pool is forgotten, so that a child makes another.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from i2am.storage.errors import InputError


def refuse_fork(owner: int, what: str) -> None:
    """Raise `InputError` in a child that was forked from process `owner`, whose threads it would wait for."""
    if os.getpid() != owner:
        raise InputError(
            f"{what} in a forked child process",
            expected="the process that began to use it",
            got="a copy of it without its threads",
            remedy='start processes with "spawn" or "forkserver": multiprocessing.get_context("spawn"), or '
            'multiprocessing_context="spawn" of a DataLoader',
        )


def _forget_dask_threads() -> None:
    threaded: Any = sys.modules.get("dask.threaded")
    if threaded is not None:
        threaded.default_pool = None
        threaded.pools.clear()
        threaded.pools_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_dask_threads)
