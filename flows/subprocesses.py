"""Child processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

GRACE_SECONDS = 10.0
"""Seconds that a child gets to leave after a signal before it is killed."""


@contextmanager
def child(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    quiet: bool = False,
    talk: bool = False,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[str]]:
    """Start a process that is gone when the block ends.

    ``quiet`` drops its output, which is otherwise a pipe; ``talk`` gives it a pipe as standard input.
    """
    process = subprocess.Popen(
        command,
        env=dict(env) if env is not None else None,
        stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else None,
        text=True,
        pass_fds=pass_fds,
        start_new_session=True,  # a Ctrl-C reaches the parent alone, which passes it on once
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    try:
        yield process
    finally:
        stop(process)
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
        if process.stdout is not None:
            process.stdout.close()


def run(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a process to its end; its exit status (negative: the signal that ended it) and standard output."""
    with child(command, env=env) as process:
        output, _ = process.communicate()
        return process.returncode, output


def stop(process: subprocess.Popen[str]) -> None:
    """Interrupt a process group, then kill what is left of it after ``GRACE_SECONDS``."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if process.poll() is not None:
            break
        _signal_group(process, number)
        try:
            process.wait(GRACE_SECONDS / 2)
        except subprocess.TimeoutExpired:
            continue
    _signal_group(process, signal.SIGKILL)  # grandchildren too
    process.wait()


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C inside the block, so that children are ended on the way out."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # the whole group has left
        os.killpg(process.pid, number)


def _die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent dies in a way that runs no handler (PR_SET_PDEATHSIG is 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
