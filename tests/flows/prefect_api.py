"""A Prefect server's own answers, and what is left running."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from i2am.flows.prefect.server import answers


def _release(package: str) -> tuple[int, int]:
    major, minor = version(package).split(".")[:2]
    return int(major), int(minor)


FIT = _release("fastapi") < (0, 151) and _release("sqlalchemy") < (2, 1)
"""Whether Prefect's deploy command and scheduler work with what is installed: see pyproject.toml."""


def ask(server: dict[str, str], path: str, question: dict[str, Any] | None = None) -> Any:
    """Ask the API: POST a question, or GET."""
    request = urllib.request.Request(
        f"{server['PREFECT_API_URL']}/{path}",
        data=json.dumps(question).encode() if question is not None else None,
        headers={"Content-Type": "application/json", **_password(server)},
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)


def _password(server: dict[str, str]) -> dict[str, str]:
    secret = server.get("PREFECT_API_AUTH_STRING")
    return {"Authorization": "Basic " + b64encode(secret.encode()).decode()} if secret else {}


def wait_for(condition: Callable[[], Any], seconds: float = 120, what: str = "nothing happened") -> Any:
    """Ask until the answer is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return value


def descendants(parent: int) -> dict[int, str]:
    """Processes below one: pid to command line; zombies are left out."""
    parents, commands = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, above = stat.read_text().rsplit(")", 1)[1].split()[:2]
            command = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if state != "Z":
            parents[int(stat.parent.name)], commands[int(stat.parent.name)] = int(above), command
    found: set[int] = set()
    level = {parent}
    while level:
        level = {pid for pid, above in parents.items() if above in level}
        found |= level
    return {pid: commands[pid] for pid in found}


def alive(pids: dict[int, str]) -> dict[int, str]:
    """Those that still run the same command."""
    left = {}
    for pid, command in pids.items():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            same = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() == command
        except OSError:
            continue
        if same and stat != "Z":
            left[pid] = command
    return left


class UserServer:
    """A server as a user starts it, that can be killed and started again on its port and its database."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.env = {
            "PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
        }  # fmt: skip
        self._command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
        self._command += ["--port", str(port)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        self._process = subprocess.Popen(
            self._command, env={**os.environ, **self.env}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if wait:
            wait_for(lambda: answers(self.env["PREFECT_API_URL"]), what="the server does not answer")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
