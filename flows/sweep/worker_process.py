"""One capture process, as its parent sees it: started with the first shard, given one after another."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from i2am.flows.config.models import CaptureConfig
from i2am.flows.subprocesses import child
from i2am.flows.sweep.watchdog import Watchdog
from i2am.storage.configuration.base import WITH_SECRETS
from i2am.storage.errors import InputError

IDLE_SECONDS = 20.0
"""Seconds that an idle process gets to leave; torch takes its time."""


class WorkerLost(RuntimeError):
    """A capture process ended, or gave up, before its shard was done; another may do better."""


class WorkerProcess:
    """A capture process that is started anew after it was lost; ``gpu`` is its ``CUDA_VISIBLE_DEVICES``.

    ``place`` names host, GPU and process of the last start; the process inherits ``pass_fds``.
    """

    def __init__(self, config: CaptureConfig, gpu: str | None = None) -> None:
        self._config, self.gpu = config, gpu
        self.pass_fds: tuple[int, ...] = ()
        self.place = ""
        self._resources = ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self._idle, self._retired, self._lock = True, False, threading.RLock()

    def capture(self, ids: Sequence[str]) -> Iterator[str]:
        """Capture a shard; yields each sample as it is committed.

        Raises WorkerLost if the process ends or gives up, InputError if the user has to correct something.
        """
        self._idle = False
        try:
            with Watchdog(self._config.sweep.deadline) as watchdog:
                yield from self._shard(ids, watchdog)
        except BaseException:
            self.close()
            raise

    def _shard(self, ids: Sequence[str], watchdog: Watchdog) -> Iterator[str]:
        """Send a shard and read what becomes of it; the watchdog ends a process that says nothing."""
        try:
            process = self._process or self._start(watchdog)
            watchdog.guard(process)
            self._send(process, json.dumps({"ids": list(ids)}))
            for line in process.stdout or ():
                watchdog.pat()
                message = _parse(line)
                if "done" in message:
                    yield message["done"]
                elif "end" in message:
                    self._idle = True
                    return
                elif "error" in message:
                    self._idle = True  # it is leaving
                    raise (InputError if message["input"] else WorkerLost)(message["error"])
            raise WorkerLost(f"the capture process ended with status {process.wait()}")
        except WorkerLost as lost:
            raise WorkerLost(watchdog.reason or str(lost)) from lost

    def close(self) -> None:
        """Let an idle process leave; interrupt one that is at work."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None and process.stdin is not None:
                with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                    process.stdin.close()
                    process.wait(IDLE_SECONDS if self._idle else 0)
            self._resources.close()

    def retire(self) -> None:
        """Close, and never start a process again."""
        with self._lock:
            self._retired = True
            self.close()

    def _start(self, watchdog: Watchdog) -> subprocess.Popen[str]:
        env = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu is not None else {})
        command = [sys.executable, "-m", "i2am.flows.sweep.worker_main"]
        with self._lock:
            if self._retired:
                raise WorkerLost("the capture processes were ended")
            started = child(command, env=env, talk=True, pass_fds=self.pass_fds)
            process = self._process = self._resources.enter_context(started)
        watchdog.guard(process)
        gpu = f" GPU {self.gpu}" if self.gpu is not None else ""
        self.place = f"{socket.gethostname()}{gpu} process {process.pid}"
        self._send(process, self._config.model_dump_json(by_alias=True, context=WITH_SECRETS))
        return process

    @staticmethod
    def _send(process: subprocess.Popen[str], line: str) -> None:
        if process.stdin is None:
            raise RuntimeError("the process has no standard input")
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerLost(f"the capture process ended with status {process.wait()}") from error


def _parse(line: str) -> dict[str, Any]:
    try:
        message: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise WorkerLost("the capture process ended in the middle of a message") from error
    return message
