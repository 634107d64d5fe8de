"""Commands of the command line in forked processes: torch is loaded once, each command is one process.

The server (``python -m tests.integration.forks CONFIG``) warms up with a capture's configuration, then reads
a line of JSON for each command: {"argv", "env", "mortal", "err", "out"} gives {"pid"}; {"wait": pid} gives
{"status"}.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.flows.conftest import ROOT, Outcome


@dataclass
class Command:
    """A command that runs."""

    forks: Forks
    pid: int
    folder: Path
    outcome: Outcome | None = None

    def wait(self) -> Outcome:
        """Wait for the end; the status is negative after a signal."""
        if self.outcome is None:
            status = self.forks.ask({"wait": self.pid})["status"]
            out, err = ((self.folder / name).read_text() for name in ("out", "err"))
            self.outcome = Outcome(status, out, err)
        return self.outcome

    def running(self) -> bool:
        """Whether it has not ended; one that was not waited for is a zombie."""
        state = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state != "Z"

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for something to become true while the command runs."""
        end = time.monotonic() + 60
        while not true():
            assert self.running(), self.wait()
            assert time.monotonic() < end
            time.sleep(0.002)


class Forks:
    """The server's other side."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder, self._count = process, folder, 0

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(self, *argv: object, env: dict[str, str] | None = None, mortal: bool = False) -> Command:
        """Start a command; ``mortal``: permissions hold for it even if we are root."""
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        words = [str(word) for word in argv]
        places = {name: str(folder / name) for name in ("out", "err")}
        return Command(
            self, self.ask({"argv": words, "env": env or {}, "mortal": mortal, **places})["pid"], folder
        )

    def run(self, *argv: object, env: dict[str, str] | None = None) -> Outcome:
        """Run a command to its end."""
        return self.start(*argv, env=env).wait()


@contextmanager
def forks(config: Path, folder: Path, env: dict[str, str] | None = None) -> Iterator[Forks]:
    """A server that is warm."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.forks", str(config)],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Forks(process, folder)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def _fork(message: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setpgid(0, 0)
        for name, stream in (("out", 1), ("err", 2)):
            os.dup2(os.open(message[name], os.O_WRONLY | os.O_CREAT), stream)
        os.environ.update(message["env"])
        if message["mortal"] and os.geteuid() == 0:
            _drop_override()
        from i2am.flows.cli import main

        status = main(message["argv"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _drop_override() -> None:
    """Give up root's right to ignore permissions: CAP_DAC_OVERRIDE (1) and CAP_DAC_READ_SEARCH (2)."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    data[0] &= ~0b110  # effective, of the first 32
    assert libc.capset(header, data) == 0


def serve(config: str) -> None:
    """Answer until standard input ends; then kill what still runs."""
    from i2am.flows.capture.job import prepare
    from i2am.flows.config.load_yaml import load_capture
    from i2am.storage.writing import lease

    lease.LEASE_SECONDS = float(os.environ.get("TEST_LEASE_SECONDS", lease.LEASE_SECONDS))
    lease.RENEW_SECONDS = lease.LEASE_SECONDS / 4
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare(load_capture(config))
    living: set[int] = set()
    for line in sys.stdin:
        message = json.loads(line)
        if "wait" in message:
            status = os.waitstatus_to_exitcode(os.waitpid(message["wait"], 0)[1])
            living.discard(message["wait"])
            answer = {"status": status}
        else:
            pid = _fork(message)
            living.add(pid)
            answer = {"pid": pid}
        print(json.dumps(answer), file=answers, flush=True)
    for pid in living:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve(sys.argv[1])
