"""Deadlines: what shows no sign of life for too long is ended."""

from __future__ import annotations

import os
import signal
import threading
from abc import ABC, abstractmethod
from time import monotonic
from typing import Self

from i2am.flows.console.output import log
from i2am.storage.errors import CaptureError

GRACE_SECONDS = 10.0
"""Seconds that this process gets to clear up after the interrupt."""


class Deadline(ABC):
    """Inside the context, calls `end` in a thread once nobody has called `pat` for ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._last = seconds, monotonic()
        self.over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="deadline", daemon=True)

    @abstractmethod
    def end(self) -> bool:
        """End what is guarded; False if there is nothing to end yet."""

    def pat(self) -> None:
        """Note a sign of life."""
        self._last = monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            left = self._last + self.seconds - monotonic()
            if left <= 0 and self.end():
                return
            if self.over.wait(min(max(left, 0.05), 1.0)):
                return


class OwnDeadline(Deadline):
    """Interrupts this process, as Ctrl-C would, and turns that into an error of one line.

    Code that no interrupt reaches is ended with the process. Watches nothing outside the main thread, which
    alone can be interrupted.
    """

    ended = False

    def __enter__(self) -> Self:
        return super().__enter__() if self._watches() else self

    def __exit__(self, *error: object) -> None:
        if self._watches():
            super().__exit__()
        if self.ended and error[0] is not None:
            raise self._error() from None

    def end(self) -> bool:
        self.ended = True
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, signal.SIGINT)
        if not self.over.wait(GRACE_SECONDS):
            log(f"i2am: {self._error()}")
            os._exit(CaptureError.exit_status)
        return True

    @staticmethod
    def _watches() -> bool:
        return threading.current_thread() is threading.main_thread()

    def _error(self) -> CaptureError:
        return CaptureError(
            "the capture hangs",
            expected=f"a step of the model, or a sample, within {self.seconds:g} s",
            got="none",
            remedy="run it again: what is committed is kept; deadline: (--deadline) allows more time",
        )
