"""The deadline of a capture process: one that shows no sign of life for too long is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

from i2am.flows.deadline import Deadline


class Watchdog(Deadline):
    """Kills the guarded process once nobody has patted the dog for ``seconds``; ``reason`` then says so."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self._process: subprocess.Popen[str] | None = None
        self.reason = ""

    def guard(self, process: subprocess.Popen[str]) -> None:
        """From now on watch this process, which leads a session of its own."""
        self._process = process

    def end(self) -> bool:
        if self._process is None:
            return False
        self.reason = f"the capture process made no step for {self.seconds:g} s, and was ended"
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return True
