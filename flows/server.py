"""Prefect's own temporary server, for commands that bring their orchestration along."""

from __future__ import annotations

import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.children import child
from storage.errors import InputError

START_SECONDS = 120.0
"""Seconds in which the server must answer; it takes 8 to 15 on two cores."""

_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # its telemetry wants the network
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
}


def quiet_environment() -> dict[str, str]:
    """Return this process's environment with Prefect's console messages and telemetry off."""
    return {**_QUIET, **os.environ}


@contextmanager
def temporary_server(home: Path) -> Iterator[dict[str, str]]:
    """Run a Prefect server that lives as long as the block.

    The command is the one that Prefect starts for its own ephemeral server, without importing Prefect here
    (its server takes 8 s to import on two cores).

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
    with child(command, env={**env, **settings}, quiet=True) as process:
        end = time.monotonic() + START_SECONDS
        while not _answers(f"{env['PREFECT_API_URL']}/health"):
            if process.poll() is not None or time.monotonic() > end:
                raise InputError(
                    "Prefect's temporary server did not start",
                    expected=f"an answer within {START_SECONDS:.0f} s",
                    got="none" if process.poll() is None else f"exit status {process.returncode}",
                    remedy="use --direct to run without Prefect",
                )
            time.sleep(0.1)
        yield env


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
