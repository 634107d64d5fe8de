"""Prefect's own temporary server, for commands that bring their orchestration along."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from i2am.flows.subprocesses import child
from i2am.storage.errors import InputError

START_SECONDS = 120.0
"""Seconds in which the server must answer; it takes 8 to 15 on two cores."""

_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # its telemetry wants the network
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # what it cannot send to a server that is lost
}


def quiet_environment() -> dict[str, str]:
    """Return this process's environment with Prefect's console messages and telemetry off."""
    return {**_QUIET, **os.environ}


@contextmanager
def temporary_server(home: Path) -> Iterator[dict[str, str]]:
    """Run a Prefect server that lives as long as the block; if it dies before, it is started anew.

    The command is the one that Prefect starts for its own ephemeral server, without importing Prefect here
    (its server takes 8 s to import on two cores). A second start finds the database of the first: flows that
    outlived the server go on.

    Parameters
    ----------
    home
        Empty folder for its database; nothing outside it is touched.

    Yields
    ------
    dict of str
        Environment of processes that use the server: the caller's, with ``PREFECT_API_URL`` set.

    Raises
    ------
    InputError
        If the server does not answer in time.
    """
    port = _free_port()
    env = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    local = "127.0.0.1,localhost"
    env |= _QUIET | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "NO_PROXY": ",".join(filter(None, [env.get("NO_PROXY"), local])),
        "no_proxy": ",".join(filter(None, [env.get("no_proxy"), local])),
    }
    settings = {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1", "PREFECT_UI_ENABLED": "0"}
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "critical", "--lifespan", "on"]
    keeper = _Keeper(command, env | settings)
    keeper.start()
    try:
        end = time.monotonic() + START_SECONDS
        while not answers(env["PREFECT_API_URL"]):
            if keeper.statuses or time.monotonic() > end:
                raise InputError(
                    "Prefect's temporary server did not start",
                    expected=f"an answer within {START_SECONDS:.0f} s",
                    got=f"exit status {keeper.statuses[0]}" if keeper.statuses else "none",
                    remedy="use --direct to run without Prefect",
                )
            time.sleep(0.1)
        yield env
    finally:
        keeper.leave.set()
        keeper.join()


class _Keeper(threading.Thread):
    """Starts a process again whenever it ends; the process dies with this thread."""

    def __init__(self, command: Sequence[str], env: dict[str, str]) -> None:
        super().__init__(name="prefect-server", daemon=True)
        self._command, self._env = command, env
        self.leave = threading.Event()
        self.statuses: list[int] = []

    def run(self) -> None:
        """Keep the process until told to leave."""
        while not self.leave.is_set():
            with child(self._command, env=self._env, quiet=True) as process:
                while process.poll() is None and not self.leave.wait(0.2):
                    pass
            self.statuses.append(process.returncode)
            self.leave.wait(min(len(self.statuses), 30))  # one that cannot start must not spin


def answers(api: str) -> bool:
    """Whether a Prefect server answers.

    Parameters
    ----------
    api
        Its URL, as ``PREFECT_API_URL`` has it.
    """
    # The machine itself is never asked through a proxy; other servers may have to be.
    local = urllib.parse.urlsplit(api).hostname in ("127.0.0.1", "localhost", "::1")
    handlers = [urllib.request.ProxyHandler({})] if local else []
    try:
        with urllib.request.build_opener(*handlers).open(f"{api.rstrip('/')}/health", timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, HTTPException):
        return False


def wait_for_server(api: str, seconds: float) -> bool:
    """Wait until a server answers, asking less and less often.

    Parameters
    ----------
    api
        As for :func:`answers`.
    seconds
        How long to wait.

    Returns
    -------
    bool
        Whether it answers.
    """
    end, pause = time.monotonic() + seconds, 0.25
    while not answers(api):
        if time.monotonic() + pause > end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 15.0)
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
