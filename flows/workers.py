"""The capture processes of a sweep: one for each GPU, lent to one shard at a time, started anew when lost."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from flows.children import child
from flows.config import CaptureConfig
from flows.progress import Progress, report
from storage.errors import InputError

IDLE_SECONDS = 20.0
"""Seconds that a process with nothing to do gets to leave; torch takes its time."""


class WorkerLost(RuntimeError):
    """A capture process ended, or gave up, before its shard was done; another may do better."""


class Worker:
    """One capture process; started with the first shard.

    Parameters
    ----------
    config
        The capture.
    gpu
        Value of ``CUDA_VISIBLE_DEVICES``; None leaves it as it is.
    """

    def __init__(self, config: CaptureConfig, gpu: str | None) -> None:
        self._config, self._gpu = config, gpu
        self._life = ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self._idle = True

    def ask(self, ids: Sequence[str]) -> Iterator[str]:
        """Have a shard captured.

        Parameters
        ----------
        ids
            Its samples; those that are committed or set aside are passed over.

        Yields
        ------
        str
            Each sample as it is committed.

        Raises
        ------
        WorkerLost
            If the process ends or gives up; the next shard gets a new one.
        InputError
            If the user has to mend something.
        """
        self._idle = False
        try:
            process = self._process or self._start()
            self._send(process, json.dumps({"ids": list(ids)}))
            for line in process.stdout or ():
                message: dict[str, Any] = json.loads(line)
                if "done" in message:
                    yield message["done"]
                elif "end" in message:
                    self._idle = True
                    return
                else:
                    self._idle = True  # it is leaving
                    raise (InputError if message["input"] else WorkerLost)(message["error"])
            raise WorkerLost(f"the capture process ended with status {process.wait()}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let an idle process leave; one at work is interrupted."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                process.stdin.close()
                process.wait(IDLE_SECONDS if self._idle else 0)
        self._life.close()

    def _start(self) -> subprocess.Popen[str]:
        env = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": self._gpu} if self._gpu is not None else {})
        command = [sys.executable, "-m", "flows.sweep_worker"]
        self._process = self._life.enter_context(child(command, env=env, talk=True))
        self._send(self._process, self._config.model_dump_json(by_alias=True))
        return self._process

    @staticmethod
    def _send(process: subprocess.Popen[str], line: str) -> None:
        if process.stdin is None:
            raise RuntimeError("the process has no standard input")
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerLost(f"the capture process ended with status {process.wait()}") from error


class Pool:
    """Workers of which each serves one shard at a time.

    Parameters
    ----------
    config
        The capture.
    total, done
        Samples of the sweep, and those committed before it, for the progress.
    """

    def __init__(self, config: CaptureConfig, total: int, done: int) -> None:
        named = config.sweep.gpus
        gpus: list[str | None] = [None] * config.sweep.workers
        if named is not None:
            gpus = [str(gpu) for gpu in named]
        self._free: queue.Queue[Worker] = queue.Queue()
        self._all = [Worker(config, gpu) for gpu in gpus]
        for worker in self._all:
            self._free.put(worker)
        self._lock, self._done, self._total = threading.Lock(), done, total

    @property
    def size(self) -> int:
        """Number of workers."""
        return len(self._all)

    def capture(self, ids: Sequence[str]) -> int:
        """Capture a shard with the next worker that is free, reporting each sample.

        Parameters
        ----------
        ids
            Samples of the shard.

        Returns
        -------
        int
            Samples captured now.

        Raises
        ------
        WorkerLost, InputError
            As for :meth:`Worker.ask`.
        """
        worker, count = self._free.get(), 0
        try:
            for sample in worker.ask(ids):
                count += 1
                with self._lock:
                    self._done += 1
                    report(Progress("capture", self._done, self._total, sample))
        finally:
            self._free.put(worker)
        return count

    def close(self) -> None:
        """End all processes."""
        for worker in self._all:
            worker.close()


@contextmanager
def pool(config: CaptureConfig, total: int, done: int) -> Iterator[Pool]:
    """A pool that is closed at the end of the block; parameters as for :class:`Pool`."""
    made = Pool(config, total, done)
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
