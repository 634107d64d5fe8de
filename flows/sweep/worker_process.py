"""One capture process, as its parent sees it: started with the first shard, asked for one after another."""

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
from i2am.storage.errors import InputError

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

    Attributes
    ----------
    gpu
        As given.
    place
        Host, GPU and process id of the process that was started last.
    """

    def __init__(self, config: CaptureConfig, gpu: str | None) -> None:
        self._config, self.gpu = config, gpu
        self._life = ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self._idle, self._retired, self._lock = True, False, threading.RLock()
        self.place = ""

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
        with self._lock:
            process, self._process = self._process, None
            if process is not None and process.stdin is not None:
                with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                    process.stdin.close()
                    process.wait(IDLE_SECONDS if self._idle else 0)
            self._life.close()

    def retire(self) -> None:
        """Close, and never start a process again."""
        with self._lock:
            self._retired = True
            self.close()

    def _start(self) -> subprocess.Popen[str]:
        env = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu is not None else {})
        command = [sys.executable, "-m", "i2am.flows.sweep.worker_main"]
        with self._lock:
            if self._retired:
                raise WorkerLost("the capture processes were ended")
            process = self._process = self._life.enter_context(child(command, env=env, talk=True))
        gpu = f" GPU {self.gpu}" if self.gpu is not None else ""
        self.place = f"{socket.gethostname()}{gpu} process {process.pid}"
        self._send(process, self._config.model_dump_json(by_alias=True))
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
