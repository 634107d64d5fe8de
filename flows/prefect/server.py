"""Prefect's own temporary server, for commands that are asked for Prefect where no server is."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import tempfile
import time
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from i2am.flows.subprocesses import child
from i2am.storage.errors import ConfigError, InputError
from i2am.storage.redaction import redacted

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
    (its server takes 8 s to import on two cores). Every user of the machine reaches its port: it asks for a
    password, which is made for this start, and which only the environments of our own processes hold.
    """
    home.chmod(0o700)
    door = socket.create_server(("127.0.0.1", 0))  # bound here and handed on: nobody else can take the port
    port, password = door.getsockname()[1], f"i2am:{secrets.token_urlsafe(32)}"
    env = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    local = "127.0.0.1,localhost"
    env |= _QUIET | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_AUTH_STRING": password,
        "NO_PROXY": ",".join(filter(None, [env.get("NO_PROXY"), local])),
        "no_proxy": ",".join(filter(None, [env.get("no_proxy"), local])),
    }
    settings = {
        "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1", "PREFECT_UI_ENABLED": "0",
        "PREFECT_SERVER_API_AUTH_STRING": password,
    }  # fmt: skip
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--fd", str(door.fileno()), "--log-level", "critical", "--lifespan", "on"]
    with door, child(command, env=env | settings, quiet=True, pass_fds=(door.fileno(),)) as process:
        door.close()
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


@contextmanager
def prefect_server(shows: Iterable[str] = ()) -> Iterator[None]:
    """Prefect for the block: the server of the environment or of its profile, else a temporary one.

    ``shows`` are places that become parameters of a flow, which anybody reads: no credentials in them.
    """
    for place in shows:
        if redacted(place) != place:
            raise ConfigError(
                f"{place} in a Prefect flow",
                expected="a URL without credentials",
                got="some",
                remedy="give them in the environment, or use --direct",
            )
    if os.environ.get("PREFECT_API_URL") or _profile_names_server():
        yield
        return
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="i2am-prefect-") as home, temporary_server(Path(home)) as env:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            del os.environ[name]  # a key of another server must not be sent to this one
        os.environ.update(env)
        try:
            yield
        finally:
            for name in env.keys() - before.keys():
                os.environ.pop(name, None)
            os.environ.update(before)


def _profile_names_server() -> bool:
    """Whether ``prefect profile use`` or ``prefect config set`` chose a server; without importing Prefect."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text(encoding="utf-8"))
        chosen = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
        return bool(profiles["profiles"][chosen].get("PREFECT_API_URL"))
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return False


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
