"""The deadline of a capture process: one that shows no sign of life for too long is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from typing import Self


class Watchdog:
    """Kills the guarded process once nobody has patted the dog for ``seconds``; ``reason`` then says so."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()
        self._process: subprocess.Popen[str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.reason = ""

    def guard(self, process: subprocess.Popen[str]) -> None:
        """From now on watch this process, which leads a session of its own."""
        self._process = process

    def pat(self) -> None:
        """The process showed a sign of life."""
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while (left := self._last + self._seconds - time.monotonic()) > 0 or self._process is None:
            if self._over.wait(min(max(left, 0.05), 3600)):
                return
        self.reason = f"the capture process made no step for {self._seconds:g} s, and was ended"
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
