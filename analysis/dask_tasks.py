"""Run many Dask tasks on the active scheduler, a bounded number at a time: as one ends the next begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

import dask
from dask.base import get_scheduler
from dask.system import CPU_COUNT

from i2am.analysis.reduction.softmax import KERNEL_VERSION
from i2am.storage.errors import ClusterError

# Tasks in flight for each working thread: one that runs, and one that is ready when it ends.
TASKS_PER_THREAD = 2
BATCH = 64  # tasks in flight on a scheduler that accepts nothing more before all of them are done
RECOUNT_SECONDS = 1.0  # seconds after which the workers of a cluster are counted again
NO_WORKER_SECONDS = 600.0  # seconds that work waits on a cluster that has lost all its workers
Numbered = Iterator[tuple[int, Any]]
# Results by the number of their task, some at a time, in any order.
Finishing = Generator[dict[int, Any], None, None]


def kernel_version() -> int:
    """Version of the arithmetic of this process, asked of a worker before it gets work."""
    return KERNEL_VERSION


def run_tasks(tasks: Iterable[Any], on_done: Callable[[int], None] | None = None) -> list[Any]:
    """Compute `dask.delayed` objects in parallel, and return their (small) results in order.

    Tasks are read as they are needed. `on_done` is called in this thread with the number of finished tasks.
    The first error of a task is raised; tasks that have not begun by then are dropped. `ClusterError` means
    that the cluster has no worker left.
    """
    get = get_scheduler()
    client = getattr(get, "__self__", None)  # of a distributed client, `get` is a method
    if client is not None and hasattr(client, "nthreads"):
        finishing = _in_flight(enumerate(tasks), _Cluster(client))
    elif get is None or get is dask.threaded.get:
        finishing = _in_flight(enumerate(tasks), _Threads())
    else:
        finishing = _in_batches(enumerate(tasks), 1 if get is dask.local.get_sync else BATCH)
    results: dict[int, Any] = {}
    with closing(finishing):
        for done in finishing:
            results |= done
            if on_done is not None:
                on_done(len(results))
    return [results[number] for number in range(len(results))]


def _in_batches(tasks: Numbered, size: int) -> Finishing:
    while batch := dict(islice(tasks, size)):
        yield dict(zip(batch, dask.compute(*batch.values()), strict=True))


def _in_flight(tasks: Numbered, workers: _Threads | _Cluster) -> Finishing:
    finished: SimpleQueue[int] = SimpleQueue()
    in_flight: dict[int, Any] = {}
    last_seen = time.monotonic()
    try:
        while True:
            capacity = workers.capacity()
            for number, task in islice(tasks, max(0, (capacity or 1) - len(in_flight))):
                in_flight[number] = workers.submit(task)
                in_flight[number].add_done_callback(lambda _, number=number: finished.put(number))
            if not in_flight:
                return
            if capacity:
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > NO_WORKER_SECONDS:
                raise ClusterError(
                    "the Dask cluster has no worker left",
                    expected=f"at least one within {NO_WORKER_SECONDS:.0f} s",
                    got="none",
                    remedy="start workers and run again: finished marginals are kept",
                )
            if numbers := _wait(finished):
                done = workers.results([in_flight.pop(number) for number in numbers])
                yield dict(zip(numbers, done, strict=True))
    finally:
        workers.close(list(in_flight.values()))


def _wait(finished: SimpleQueue[int]) -> list[int]:
    """Numbers of finished tasks: at least one, unless none finishes for a while."""
    try:
        numbers = [finished.get(timeout=RECOUNT_SECONDS)]
    except Empty:
        return []
    while not finished.empty():
        numbers.append(finished.get())
    return numbers


class _Threads:
    """As many threads of this process as Dask's configuration says, or the pool that it names."""

    def __init__(self) -> None:
        self._users_pool = dask.config.get("pool", None)
        configured = getattr(self._users_pool, "_max_workers", None) or dask.config.get("num_workers", None)
        threads = configured or CPU_COUNT
        self._capacity: int = TASKS_PER_THREAD * threads
        self._pool = self._users_pool or ThreadPoolExecutor(threads, thread_name_prefix="i2am-work")
        # One thread waits for each task in flight; the pool does the work.
        self._callers = ThreadPoolExecutor(self._capacity, thread_name_prefix="i2am-wait")

    def capacity(self) -> int:
        return self._capacity

    def submit(self, task: Any) -> Any:
        return self._callers.submit(lambda: dask.compute(task, scheduler="threads", pool=self._pool)[0])

    def results(self, futures: list[Any]) -> Sequence[Any]:
        return [future.result() for future in futures]

    def close(self, futures: list[Any]) -> None:
        for future in futures:
            future.cancel()
        if self._users_pool is None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._callers.shutdown(wait=True, cancel_futures=True)


class _Cluster:
    """The workers of a distributed client; 0 capacity while there are none."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._capacity = 0
        self._counted = float("-inf")

    def capacity(self) -> int:
        if time.monotonic() - self._counted >= RECOUNT_SECONDS:
            self._capacity = TASKS_PER_THREAD * sum(self._client.nthreads().values())
            self._counted = time.monotonic()
        return self._capacity

    def submit(self, task: Any) -> Any:
        return self._client.compute(task)

    def results(self, futures: list[Any]) -> Sequence[Any]:
        found: Sequence[Any] = self._client.gather(futures)
        return found

    def close(self, futures: list[Any]) -> None:
        if futures and self._client.status == "running":
            self._client.cancel(futures)  # a task that already runs on a worker runs to its end
