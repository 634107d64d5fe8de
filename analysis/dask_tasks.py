"""Running many Dask tasks on whatever scheduler is active, a bounded number of them at a time.

The next task is handed over as soon as one has finished, so that no worker waits for the slowest of a batch,
and neither the graph nor the work of a long study is ever in memory as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import dask
from dask.base import get_scheduler
from dask.system import CPU_COUNT

from i2am.analysis.reduction.softmax import KERNEL_VERSION
from i2am.storage.errors import ClusterError

TASKS_PER_THREAD = 2
"""Tasks in flight for each thread that works: one that runs, and one that is ready when it ends."""

BATCH = 64
"""Tasks in flight on a scheduler that takes nothing more before all of them are done."""

RECOUNT_SECONDS = 1.0
"""Seconds after which a cluster's workers are counted again: they come and go."""

NO_WORKER_SECONDS = 600.0
"""Seconds that work waits on a cluster that has lost all its workers."""

Numbered = Iterator[tuple[int, Any]]
Crew = Callable[[Numbered], Iterator[dict[int, Any]]]
"""Numbered tasks to their results, some at a time, in any order."""


def kernel_version() -> int:
    """Version of the arithmetic that this process would use: what a worker is asked before it gets work."""
    return KERNEL_VERSION


def run_tasks(tasks: Iterable[Any], on_done: Callable[[int], None] | None = None) -> list[Any]:
    """Compute delayed objects, in parallel."""
    results: dict[int, Any] = {}
    with _crew() as crew, closing(crew(enumerate(tasks))) as finished:
        for done in finished:
            results |= done
            if on_done is not None:
                on_done(len(results))
    return [results[number] for number in range(len(results))]


@contextmanager
def _crew() -> Iterator[Callable[[Numbered], Any]]:
    """Whoever does the work: the active Dask client, threads of this process, or any other scheduler."""
    get = get_scheduler()
    client = getattr(get, "__self__", None)  # of a distributed client it is the method `get`
    if client is not None and hasattr(client, "nthreads"):
        yield lambda tasks: _in_flight(tasks, _Cluster(client))
    elif get is None or get is dask.threaded.get:
        with _threads() as threads:
            yield lambda tasks: _in_flight(tasks, threads)
    else:
        yield lambda tasks: _in_batches(tasks, 1 if get is dask.local.get_sync else BATCH)


def _in_batches(tasks: Numbered, many: int) -> Iterator[dict[int, Any]]:
    while batch := dict(islice(tasks, many)):
        yield dict(zip(batch, dask.compute(*batch.values()), strict=True))


class _Workers(Protocol):
    """What `_in_flight` needs: how many tasks may be in flight now (0: nobody is there), and futures."""

    def width(self) -> int: ...
    def submit(self, task: Any) -> Any: ...
    def results(self, futures: list[Any]) -> Sequence[Any]: ...
    def cancel(self, futures: list[Any]) -> None: ...


def _in_flight(tasks: Numbered, workers: _Workers) -> Iterator[dict[int, Any]]:
    finished: SimpleQueue[int] = SimpleQueue()
    flying: dict[int, Any] = {}
    seen = time.monotonic()
    try:
        while True:
            width = workers.width()
            for number, task in islice(tasks, max(0, (width or 1) - len(flying))):
                flying[number] = workers.submit(task)
                flying[number].add_done_callback(lambda _, number=number: finished.put(number))
            if not flying:
                return
            seen = time.monotonic() if width else _still_patient(seen)
            if numbers := _next(finished):
                done = workers.results([flying.pop(number) for number in numbers])
                yield dict(zip(numbers, done, strict=True))
    finally:
        workers.cancel(list(flying.values()))


def _next(finished: SimpleQueue[int]) -> list[int]:
    """Numbers that have come: at least one, unless none does for a while."""
    try:
        numbers = [finished.get(timeout=RECOUNT_SECONDS)]
    except Empty:
        return []
    while not finished.empty():
        numbers.append(finished.get())
    return numbers


def _still_patient(seen: float) -> float:
    if time.monotonic() - seen > NO_WORKER_SECONDS:
        raise ClusterError(
            "the Dask cluster has no worker left",
            expected=f"at least one within {NO_WORKER_SECONDS:.0f} s",
            got="none",
            remedy="start workers and run again: finished marginals are kept",
        )
    return seen


class _Threads:
    """Threads of this process: `pool` does the work; a thread of `callers` waits for each task in flight."""

    def __init__(self, pool: Any, callers: ThreadPoolExecutor, width: int) -> None:
        self._pool, self._callers, self._width = pool, callers, width

    def width(self) -> int:
        return self._width

    def submit(self, task: Any) -> Any:
        return self._callers.submit(lambda: dask.compute(task, scheduler="threads", pool=self._pool)[0])

    def results(self, futures: list[Any]) -> Sequence[Any]:
        return [future.result() for future in futures]

    def cancel(self, futures: list[Any]) -> None:
        for future in futures:
            future.cancel()


@contextmanager
def _threads() -> Iterator[_Threads]:
    """As many threads as Dask's configuration says; they are gone afterwards, unless the pool is a user's."""
    lent = dask.config.get("pool", None)
    many = getattr(lent, "_max_workers", None) or dask.config.get("num_workers", None) or CPU_COUNT
    pool = lent or ThreadPoolExecutor(many, thread_name_prefix="i2am-work")
    callers = ThreadPoolExecutor(TASKS_PER_THREAD * many, thread_name_prefix="i2am-wait")
    try:
        yield _Threads(pool, callers, TASKS_PER_THREAD * many)
    finally:
        if lent is None:
            pool.shutdown(wait=False, cancel_futures=True)
        callers.shutdown(wait=True, cancel_futures=True)


class _Cluster:
    """The workers of a distributed client."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._threads = 0
        self._looked = float("-inf")

    def width(self) -> int:
        if time.monotonic() - self._looked >= RECOUNT_SECONDS:
            self._threads = sum(self._client.nthreads().values())
            self._looked = time.monotonic()
        return TASKS_PER_THREAD * self._threads

    def submit(self, task: Any) -> Any:
        return self._client.compute(task)

    def results(self, futures: list[Any]) -> Sequence[Any]:
        found: Sequence[Any] = self._client.gather(futures)
        return found

    def cancel(self, futures: list[Any]) -> None:
        if futures and self._client.status == "running":
            self._client.cancel(futures)  # one that runs on a worker runs to its end there
