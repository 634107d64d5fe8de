"""Prefect's own temporary server, for commands that are asked for Prefect where no server is."""

from __future__ import annotations

import os
import socket
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
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
    """The environment of the process with Prefect's console messages and telemetry off."""
    return {**_QUIET, **os.environ}


@contextmanager
def temporary_server(home: Path) -> Iterator[dict[str, str]]:
    """Run a Prefect server for the block, with its database in ``home``; yields the environment of its users.

    The command is the one that Prefect starts for its own ephemeral server, without importing Prefect here
    (its server takes 8 s to import on two cores).
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
    with child(command, env=env | settings, quiet=True) as process:
        end = time.monotonic() + START_SECONDS
        while not answers(env["PREFECT_API_URL"]):
            if process.poll() is not None or time.monotonic() > end:
                raise InputError(
                    "Prefect's temporary server did not start",
                    expected=f"an answer within {START_SECONDS:.0f} s",
                    got=f"exit status {process.returncode}" if process.returncode is not None else "none",
                    remedy="use --direct to run without Prefect",
                )
            time.sleep(0.1)
        yield env


def answers(api: str) -> bool:
    """Whether a Prefect server answers at a URL such as ``PREFECT_API_URL`` has."""
    # The machine itself is never asked through a proxy; other servers may have to be.
    local = urllib.parse.urlsplit(api).hostname in ("127.0.0.1", "localhost", "::1")
    handlers = [urllib.request.ProxyHandler({})] if local else []
    try:
        with urllib.request.build_opener(*handlers).open(f"{api.rstrip('/')}/health", timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, HTTPException):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
