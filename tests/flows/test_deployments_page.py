"""The commands of docs/deployments.md, run as they stand there, with real workers; then a run that is
cancelled through the API, and finished by the next scheduled one."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from i2am.flows.prefect.server import answers
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.flows.conftest import ROOT
from tests.flows.prefect_api import FIT, alive, ask, descendants, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not FIT, reason="fastapi and sqlalchemy are not those of constraints.txt"),
]


def commands() -> list[str]:
    """Each command of the page's console blocks."""
    text = (ROOT / "docs" / "deployments.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


class Desk:
    """A user's terminals: a folder, exported variables, commands that end and commands that stay."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.exports, self.staying = folder, [], []
        shims = folder / "bin"
        shims.mkdir()
        for name, module in (("i2am", "i2am"), ("prefect", "prefect")):
            (shims / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
            (shims / name).chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.api = {"PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api"}
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")} | {
            "PATH": f"{shims}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_SERVER_API_PORT": str(self.port),  # 4200 may be taken
            "DO_NOT_TRACK": "1",
        }

    def type(self, command: str) -> str:
        """Run one command of the page."""
        command = command.replace(":4200", f":{self.port}")
        if command.startswith("export "):
            self.exports.append(command)
            return ""
        script = "; ".join([*self.exports, f"exec {command}"])
        if command.startswith(("prefect server start", "prefect worker start")):
            with (self.folder / f"log-{len(self.staying)}").open("w") as log:
                self.staying.append(
                    subprocess.Popen(
                        ["bash", "-c", script], cwd=self.folder, env=self.env, start_new_session=True,
                        stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    )
                )  # fmt: skip
            if "server" in command:
                wait_for(lambda: answers(self.api["PREFECT_API_URL"]), 100)
            return ""
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def leave(self) -> None:
        for process in reversed(self.staying):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def runs(self, flow: str, *states: str) -> list[dict[str, Any]]:
        question = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC"}
        question["flow_runs"] = {"state": {"type": {"any_": list(states)}}}
        found: list[dict[str, Any]] = ask(self.api, "flow_runs/filter", question)
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    left = {pid: command for process in made.staying for pid, command in descendants(process.pid).items()}
    made.leave()
    wait_for(lambda: not alive(left), 30, "something was left running")


def test_the_page_and_a_cancelled_run(desk: Desk, config: Callable[..., Path]) -> None:
    def capture(count: int, out: str) -> None:
        pipeline = {"kind": "factory", "function": "tests.flows.tiny:build", "arguments": {"delay": 0.5}}
        config(out=out, pipeline=pipeline, samples={"scenes": {"count": count}}, sweep={"shard": 1})

    capture(3, "first.zarr")
    (desk.folder / "prefect.yaml").write_bytes((ROOT / "prefect.yaml").read_bytes())
    typed = commands()
    assert len(typed) > 10
    for command in typed:
        desk.type(command)
        if command == "prefect deployment run i2am-nightly-sweep/nightly":
            wait_for(lambda: desk.runs("i2am-nightly-sweep", "COMPLETED"), 180, "no worker ran the sweep")
            report = desk.folder / "results" / "report" / "index.html"
            wait_for(report.exists, 180, "the trigger did not start the analysis")
    assert verify(desk.folder / "first.zarr").ok
    wait_for(lambda: len(desk.runs("i2am-nightly-analysis", "COMPLETED")) >= 2, 180)
    told = [
        each["data"]
        for each in ask(desk.api, "artifacts/filter", {})
        if each["key"].endswith("-analysis-summary")
    ]
    assert any("3 of them new" in each for each in told)
    assert any("up to date: nothing changed" in each for each in told)

    capture(8, "second.zarr")  # the deployment reads the file when a run starts
    desk.type("prefect deployment run i2am-nightly-sweep/nightly")
    second = desk.folder / "second.zarr"
    wait_for(lambda: len(list(second.glob("commits/*.json"))) > 1, 120)
    (running,) = desk.runs("i2am-nightly-sweep", "RUNNING")
    busy = {p: c for p, c in _all(desk).items() if "i2am.flows.sweep.worker_main" in c}
    assert busy
    desk.type(f"prefect flow-run cancel {running['id']}")
    wait_for(lambda: desk.runs("i2am-nightly-sweep", "CANCELLED"), 60)
    wait_for(lambda: not alive(busy), 30)
    assert verify(second).ok
    assert not (second / ".staging").exists()
    assert 1 < len(open_run(second).samples) < 8

    desk.type("i2am deploy capture.yaml --name nightly --schedule '* * * * *'")
    wait_for(lambda: len(list(second.glob("commits/*.json"))) == 8, 200, "no run was scheduled")
    wait_for(lambda: len(desk.runs("i2am-nightly-sweep", "COMPLETED")) >= 2, 60)
    desk.type("i2am deploy capture.yaml --name nightly")  # no schedule any more
    assert verify(second).ok


def _all(desk: Desk) -> dict[int, str]:
    return {pid: command for process in desk.staying for pid, command in descendants(process.pid).items()}
