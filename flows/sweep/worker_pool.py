"""The capture processes of a sweep: one for each GPU, lent to one shard at a time, started anew when lost."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from i2am.flows.config.models import CaptureConfig
from i2am.flows.console.progress import Progress, emit
from i2am.flows.sweep.worker_process import Worker, WorkerLost

if TYPE_CHECKING:
    from i2am.flows.sweep.gpu_lease import Turn


class SweepEnded(RuntimeError):
    """The sweep is being ended; no shard is begun any more."""


@dataclass(slots=True)
class Shard:
    """Samples that one task captures, and what came of them.

    Attributes
    ----------
    ids
        The samples.
    captured
        Those that were captured, over all attempts.
    seconds
        With a capture process, over all attempts.
    places
        Where each attempt ran: host, GPU, process.
    """

    ids: tuple[str, ...]
    captured: list[str] = field(default_factory=list)
    seconds: float = 0.0
    places: list[str] = field(default_factory=list)


class Pool:
    """Workers of which each serves one shard at a time, from when its GPU is free.

    Parameters
    ----------
    config
        The capture.
    total, done
        Samples of the sweep, and those committed before it, for the progress.
    turn
        Makes what a GPU is waited for and held with; None: every GPU is taken at once.
    """

    def __init__(
        self, config: CaptureConfig, total: int, done: int, turn: Callable[[str], Turn] | None = None
    ) -> None:
        gpus: list[str | None] = [None] * config.sweep.workers
        if config.sweep.gpus is not None:
            gpus = [str(gpu) for gpu in config.sweep.gpus]
        self._free: queue.Queue[Worker | None] = queue.Queue()
        self._all = [Worker(config, gpu) for gpu in gpus]
        self._lock, self._done, self._total = threading.Lock(), done, total
        self._over = threading.Event()
        self._waiting: list[threading.Thread] = []
        for worker in self._all:
            if turn is None or worker.gpu is None:
                self._free.put(worker)
            else:
                waiter = threading.Thread(
                    target=self._take_turn, args=(worker, turn(worker.gpu)), daemon=True
                )
                self._waiting.append(waiter)
                waiter.start()

    @property
    def size(self) -> int:
        """Number of workers."""
        return len(self._all)

    def capture(self, shard: Shard, pause: float = 0.0) -> None:
        """Capture a shard with the next worker that is free, reporting each sample.

        Parameters
        ----------
        shard
            What comes of it is noted there.
        pause
            Seconds to wait before.

        Raises
        ------
        WorkerLost, InputError
            As for :meth:`i2am.flows.sweep.worker_process.Worker.ask`.
        SweepEnded
            If the pool is closed.
        """
        self._over.wait(pause)
        worker = self._free.get()
        if worker is None or self._over.is_set():
            self._free.put(worker)
            raise SweepEnded("the sweep was ended")
        started = time.perf_counter()
        try:
            for sample in worker.ask(shard.ids):
                shard.captured.append(sample)
                with self._lock:
                    self._done += 1
                    emit(Progress("capture", self._done, self._total, sample))
        except WorkerLost as error:
            if self._over.is_set():
                raise SweepEnded("the sweep was ended") from error
            raise
        finally:
            shard.seconds += time.perf_counter() - started
            shard.places.append(worker.place)
            self._free.put(worker)

    def close(self) -> None:
        """End all processes and give the GPUs back."""
        self._over.set()
        self._free.put(None)  # whoever waits for a worker
        with ThreadPoolExecutor(self.size) as together:
            list(together.map(Worker.retire, self._all))
        for waiter in self._waiting:
            waiter.join()

    def _take_turn(self, worker: Worker, turn: Turn) -> None:
        """Wait for the GPU of a worker, and hold it until the pool is closed and the process gone."""
        with turn.held(self._over) as ours:
            if ours:
                self._free.put(worker)
                self._over.wait()
                worker.retire()


@contextmanager
def pool(
    config: CaptureConfig, total: int, done: int, turn: Callable[[str], Turn] | None = None
) -> Iterator[Pool]:
    """A pool that is closed at the end of the block; parameters as for :class:`Pool`."""
    made = Pool(config, total, done, turn)
    try:
        yield made
    finally:
        made.close()


def shards(ids: Sequence[str], declared: Sequence[str], size: int, batch: int) -> list[tuple[str, ...]]:
    """Cut what is to be captured into shards that share no batch.

    Parameters
    ----------
    ids
        Samples to take, in declared order.
    declared
        All samples: batches are cut from these, whatever is missing.
    size
        Declared samples of a shard, rounded up to whole batches.
    batch
        Samples of one call of the pipeline.

    Returns
    -------
    list of tuple of str
        Without empty ones.
    """
    step, wanted = -(-size // batch) * batch, set(ids)
    cut = [[id for id in declared[i : i + step] if id in wanted] for i in range(0, len(declared), step)]
    return [tuple(shard) for shard in cut if shard]
