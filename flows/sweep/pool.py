"""A pool of capture processes, one for each GPU: a shard whose process is lost is given out again."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, Self, TypeAlias

from i2am.flows.config.models import CaptureConfig
from i2am.flows.sweep.gpu_lock import gpu_lock
from i2am.flows.sweep.worker_process import WorkerLost, WorkerProcess


@dataclass(slots=True)
class Shard:
    """Samples that one process captures in one go; ``place`` and ``error`` are those of the last attempt."""

    number: int
    ids: tuple[str, ...]
    captured: list[str] = field(default_factory=list)
    seconds: float = 0.0
    attempts: int = 0
    place: str = ""
    error: str = ""
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class SampleCommitted:
    """A sample is there."""

    sample: str


@dataclass(frozen=True, slots=True)
class ShardChanged:
    """A shard is begun, will be tried again, is done, or was given up."""

    shard: Shard
    state: Literal["running", "retrying", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Message:
    """One line for the log."""

    text: str


Event: TypeAlias = SampleCommitted | ShardChanged | Message


class Pool:
    """Captures shards with a thread for each worker; leaving the context ends every process."""

    def __init__(self, config: CaptureConfig, shards: Sequence[Shard]) -> None:
        gpus: list[str | None] = [None] * config.sweep.workers
        if config.sweep.gpus is not None:
            gpus = [str(gpu) for gpu in config.sweep.gpus]
        self._options = config.sweep
        self._waiting, self._unfinished = list(shards), len(shards)
        self._workers = [WorkerProcess(config, gpu) for gpu in gpus]
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        if self._unfinished:
            for worker in self._workers:
                threading.Thread(target=self._serve, args=(worker,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        with ThreadPoolExecutor(len(self._workers)) as threads:
            list(threads.map(WorkerProcess.retire, self._workers))

    def events(self) -> Iterator[Event]:
        """What happens, until every shard is done or given up; raises what the user has to correct."""
        while self._unfinished:
            event = self._events.get()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, ShardChanged) and event.state in ("done", "failed"):
                self._unfinished -= 1
            yield event

    def _serve(self, worker: WorkerProcess) -> None:
        """Give one worker shards, while its GPU is locked."""
        try:
            if worker.gpu is None:
                self._capture_all(worker)
                return
            with gpu_lock(worker.gpu, self._stop, lambda line: self._events.put(Message(line))) as lock:
                if lock is not None:
                    worker.pass_fds = (lock.fd,)
                    self._capture_all(worker)
        except BaseException as error:  # noqa: BLE001 - raised by events()
            self._events.put(error)

    def _capture_all(self, worker: WorkerProcess) -> None:
        try:
            while (shard := self._take()) is not None:
                self._capture(worker, shard)
        finally:
            worker.retire()

    def _take(self) -> Shard | None:
        """Wait for a shard that is due; None when the pool is closed."""
        with self._changed:
            while not self._stop.is_set():
                now = time.monotonic()
                for shard in self._waiting:
                    if shard.not_before <= now:
                        self._waiting.remove(shard)
                        return shard
                self._changed.wait(min((shard.not_before - now for shard in self._waiting), default=None))
        return None

    def _capture(self, worker: WorkerProcess, shard: Shard) -> None:
        """Capture a shard once; if the process is lost, put it back until its retries are used up."""
        started = time.perf_counter()
        shard.attempts, shard.error = shard.attempts + 1, ""
        self._events.put(ShardChanged(shard, "running"))
        try:
            for sample in worker.capture(shard.ids):
                shard.captured.append(sample)
                self._events.put(SampleCommitted(sample))
        except WorkerLost as error:
            if self._stop.is_set():
                return
            shard.error = str(error)
        finally:
            shard.seconds += time.perf_counter() - started
            shard.place = worker.place
        if not shard.error:
            self._events.put(ShardChanged(shard, "done"))
        elif shard.attempts > self._options.retries:
            self._events.put(ShardChanged(shard, "failed"))
        else:
            self._events.put(ShardChanged(shard, "retrying"))
            with self._changed:
                shard.not_before = time.monotonic() + self._options.backoff * 2 ** (shard.attempts - 1)
                self._waiting.append(shard)
                self._changed.notify_all()
