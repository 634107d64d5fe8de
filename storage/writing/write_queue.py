"""Background threads that encode and write, behind a queue that is bounded in bytes.

Each lane is served by one thread, in order, so a file has one writer and its bytes do not depend on timing. A
slow disk makes `WriteQueue.submit` wait: the producer slows down and memory stays bounded. An error stops
the jobs of its own batch alone and is raised by the batch's next `submit` or `wait`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

from i2am.storage.forked import refuse_fork
from i2am.storage.locations.base import translate

DEFAULT_QUEUE = 256 << 20
"""Bytes of arrays that may wait to be written."""

Job = Callable[[], None]


def default_threads() -> int:
    """Return how many writer threads a run gets."""
    return max(1, min(4, os.cpu_count() or 1))


class Batch:
    """The jobs of one sample: how many are under way, and the first error among them."""

    def __init__(self) -> None:
        self.pending = 0
        self.error: BaseException | None = None
        self.cancelled = False


class WriteQueue:
    """A fixed number of threads with one queue, bounded in bytes; a single larger job is let in alone."""

    def __init__(self, threads: int, queue_bytes: int) -> None:
        self._change = threading.Condition()
        self._lanes: list[deque[tuple[Job, int, Batch]]] = [deque() for _ in range(threads)]
        self._limit = queue_bytes
        self._bytes = 0
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._process = os.getpid()

    def submit(self, lane: int, job: Job, nbytes: int, batch: Batch) -> None:
        """Queue a job that keeps `nbytes` alive; wait while the queue is full.

        Jobs of one lane run in order, on one thread. Raises the batch's first error.
        """
        self.refuse_fork()
        with self._change:
            while self._bytes and self._bytes + nbytes > self._limit and not (batch.error or self._closed):
                self._change.wait()
            if batch.error is not None:
                raise batch.error
            if self._closed:
                raise RuntimeError("the writer is closed")
            if not self._threads:
                self._threads = [
                    threading.Thread(target=self._run, args=(lane,), name=f"i2am-writer-{i}", daemon=True)
                    for i, lane in enumerate(self._lanes)
                ]
                for thread in self._threads:
                    thread.start()
            self._lanes[lane % len(self._lanes)].append((job, nbytes, batch))
            self._bytes += nbytes
            batch.pending += 1
            self._change.notify_all()

    def refuse_fork(self) -> None:
        """Raise `InputError` in a forked child, which has none of the threads."""
        refuse_fork(self._process, "a run that was opened for writing is used")

    def wait(self, batch: Batch) -> None:
        """Wait until no job of a batch is under way; raise its first error unless it was cancelled."""
        self.refuse_fork()
        with self._change:
            while batch.pending:
                self._change.wait()
            if batch.error is not None and not batch.cancelled:
                raise batch.error

    def cancel(self, batch: Batch) -> None:
        """Skip the jobs of a batch that have not begun, and wait for the rest."""
        with self._change:
            batch.cancelled = True
        self.wait(batch)

    def close(self) -> None:
        """Finish what is queued and end the threads; a forked child has none."""
        if os.getpid() != self._process:
            return
        with self._change:
            self._closed = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, queue: deque[tuple[Job, int, Batch]]) -> None:
        while True:
            with self._change:
                while not queue and not self._closed:
                    self._change.wait()
                if not queue:
                    return
                job, nbytes, batch = queue.popleft()
            error: BaseException | None = None
            if batch.error is None and not batch.cancelled:
                try:
                    job()
                except OSError as caught:
                    error = translate(caught, str(caught.filename or "the run"))
                except BaseException as caught:  # noqa: BLE001 (raised where the batch is waited for)
                    error = caught
            del job  # the arrays it holds are freed before the bytes are given back
            with self._change:
                batch.error = batch.error or error
                batch.pending -= 1
                self._bytes -= nbytes
                self._change.notify_all()
