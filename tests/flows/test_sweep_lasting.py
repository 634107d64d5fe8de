"""Sweeps that share GPUs, are ended, killed, or lose their server: nothing lost, nothing left."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from i2am.flows.prefect.server import temporary_server, wait_for_server
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.flows.conftest import ROOT, spawn
from tests.flows.prefect_api import alive, ask, descendants, wait_for

pytestmark = pytest.mark.timeout(500)
COUNT = 6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with temporary_server(tmp_path_factory.mktemp("prefect")) as env:
        yield env


@pytest.fixture
def file(config: Callable[..., Path]) -> Callable[..., Path]:
    """A tiny capture of COUNT samples, each of which takes a second."""

    def write(**changes: Any) -> Path:
        arguments = changes.pop("arguments", {"delay": 0.5})
        pipeline = {"kind": "factory", "function": "tests.flows.tiny:build", "arguments": arguments}
        sweep = {"workers": 2, "shard": 2, "backoff": 0.1}
        settings = {"pipeline": pipeline, "samples": {"scenes": {"count": COUNT}}, "sweep": sweep}
        return config(**(settings | changes))

    return write


class Sweep:
    """A sweep in a process of its own."""

    def __init__(self, file: Path, env: dict[str, str], *words: object) -> None:
        self.run = Path(words[words.index("--out") + 1] if "--out" in words else file.parent / "tiny.zarr")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "i2am", "sweep", str(file), "--json", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, **env, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def commits(self) -> list[Path]:
        return sorted(self.run.glob("commits/*.json"))

    def until(self, commits: int) -> None:
        """Wait until so many samples are committed."""

        def there() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            return len(self.commits()) >= commits

        wait_for(there)

    def children(self, of: str) -> list[int]:
        return [pid for pid, command in descendants(self.process.pid).items() if of in command]

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=240)
        return self.process.returncode, out, err

    def whole(self) -> None:
        """Everything is committed once and sound, and nothing else is there."""
        self.sound()
        assert len(open_run(self.run).samples) == COUNT

    def sound(self) -> None:
        assert verify(self.run).ok
        assert not (self.run / ".staging").exists()
        assert not list(self.run.rglob("*.partial"))


@pytest.fixture
def start() -> Iterator[Callable[..., Sweep]]:
    """Start sweeps; all that they started must be gone at the end."""
    started: list[Sweep] = []

    def one(*words: Any) -> Sweep:
        started.append(Sweep(*words))
        return started[-1]

    yield one
    for sweep in started:
        if sweep.process.poll() is None:
            sweep.process.kill()
            sweep.process.wait()
        for pipe in (sweep.process.stdout, sweep.process.stderr):
            assert pipe is not None
            pipe.close()


def slots(server: dict[str, str], gpu: str) -> tuple[int, int]:
    limit = ask(server, f"v2/concurrency_limits/i2am-gpu:{socket.gethostname()}:{gpu}")
    return limit["limit"], limit["active_slots"]


def test_two_sweeps_take_turns_on_a_gpu(
    server: dict[str, str], file: Callable[..., Path], start: Callable[..., Sweep], tmp_path: Path
) -> None:
    written = file(sweep={"gpus": ["turns"], "shard": 2})
    first = start(written, server, "--out", tmp_path / "first.zarr")
    first.until(1)
    assert slots(server, "turns") == (1, 1)
    second = start(written, server, "--out", tmp_path / "second.zarr")
    wait_for(lambda: ask(server, f"v2/concurrency_limits/i2am-gpu:{socket.gethostname()}:turns"))
    for sweep in (first, second):
        status, out, err = sweep.end()
        assert status == 0, err
        assert json.loads(out)["captured"] == COUNT
        sweep.whole()
    assert "waiting for i2am-gpu:" in err
    times = [[path.stat().st_mtime for path in sweep.commits()] for sweep in (first, second)]
    assert max(times[0]) < min(times[1])
    assert slots(server, "turns") == (1, 0)


def test_a_killed_sweep_frees_its_gpu_at_once(
    server: dict[str, str], file: Callable[..., Path], start: Callable[..., Sweep], tmp_path: Path
) -> None:
    written = file(sweep={"gpus": ["killed"], "shard": 2})
    first = start(written, server)
    first.until(2)
    left = descendants(first.process.pid)
    first.process.kill()
    first.end()
    wait_for(lambda: not alive(left), 30)
    assert slots(server, "killed") == (1, 1)  # the server does not know yet
    begun = time.monotonic()
    second = start(written, server)
    status, _, err = second.end()
    assert status == 0, err
    assert time.monotonic() - begun < 100, "it waited for the lease of a dead process to run out"
    second.whole()
    assert slots(server, "killed") == (1, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_sweep_leaves_a_sound_run(
    server: dict[str, str], file: Callable[..., Path], start: Callable[..., Sweep], number: signal.Signals
) -> None:
    sweep = start(file(sweep={"gpus": ["a", "b"], "shard": 2}), server)
    sweep.until(1)
    left = descendants(sweep.process.pid)
    assert sum("i2am.flows.sweep.worker_main" in command for command in left.values()) == 2
    sweep.process.send_signal(number)
    status, _, err = sweep.end()
    assert status == 130, err
    assert err.splitlines()[-1] == "i2am: interrupted"
    assert "Traceback" not in err
    assert not alive(left)
    sweep.sound()
    assert 0 < len(open_run(sweep.run).samples) < COUNT
    assert slots(server, "a") == slots(server, "b") == (1, 0)
    again = start(file(sweep={"workers": 1}), server)
    status, out, err = again.end()
    assert status == 0, err
    assert json.loads(out)["committed"] == COUNT
    again.whole()


def test_artifacts_and_states_as_the_server_tells_them(
    server: dict[str, str], file: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = {"broken": ["scene-0000003"], "mended": str(tmp_path / "mended")}
    swept = spawn("sweep", file(arguments=arguments), "--json", env=server)
    assert swept.status == 1, swept.err
    (run,) = ask(
        server, "flow_runs/filter", {"flow_runs": {"name": {"any_": [f"sweep {tmp_path / 'tiny.zarr'}"]}}}
    )
    assert run["state"]["type"] == "COMPLETED"
    assert run["parameters"]["config"]["sweep"]["shard"] == 2
    mine = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    tasks = wait_for(lambda: _final(ask(server, "task_runs/filter", mine), 4), 30)
    assert sum(task["name"].startswith("shard ") for task in tasks) == 3
    artifacts = {each["key"]: each["data"] for each in ask(server, "artifacts/filter", mine)}
    assert artifacts["i2am-sweep-progress"] > 80
    rows = json.loads(artifacts["i2am-sweep-shards"])
    sizes = {row["sample"]: row["bytes"] for row in swept.json["samples"]}
    assert [(row["shard"], row["samples"], row["captured"]) for row in rows] == [
        (0, 2, 2),
        (1, 2, 1),
        (2, 2, 2),
    ]
    assert sum(row["bytes"] for row in rows) == sum(sizes.values()) == swept.json["bytes"]
    assert all(row["seconds"] > 0 and row["attempts"] == 1 for row in rows)
    assert all(row["where"].startswith(f"{socket.gethostname()} process ") for row in rows)
    (failure,) = json.loads(artifacts["i2am-sweep-failures"])
    assert failure["sample"] == "scene-0000003"
    assert "cannot be painted" in failure["error"]
    for words in ("| committed | 5 of 6 |", "| set aside | 1 |", "samples a minute", "| size | "):
        assert words in artifacts["i2am-sweep-summary"]


def _final(tasks: list[dict[str, Any]], count: int) -> list[dict[str, Any]] | None:
    ended = [task for task in tasks if task["state"]["type"] == "COMPLETED"]
    return ended if len(ended) == count else None


def kill_temporary_server(sweep: Sweep) -> None:
    (pid,) = sweep.children("uvicorn")
    os.kill(pid, signal.SIGKILL)


def test_a_sweep_outlives_its_temporary_server(
    server: dict[str, str], file: Callable[..., Path], start: Callable[..., Sweep], tmp_path: Path
) -> None:
    """Meanwhile another one, of another server, waits for the GPU."""
    written = file(sweep={"gpus": ["lost"], "shard": 2})
    sweep = start(written, {"PREFECT_API_URL": ""})
    sweep.until(2)
    other = start(written, server, "--out", tmp_path / "other.zarr")
    left = descendants(sweep.process.pid)
    kill_temporary_server(sweep)
    wait_for(lambda: sweep.children("uvicorn") or sweep.process.poll() is not None)
    left |= descendants(sweep.process.pid)
    status, out, err = sweep.end()
    assert status == 0, err
    assert json.loads(out)["captured"] == COUNT
    assert "Traceback" not in err
    assert not alive(left)
    sweep.whole()
    status, _, err = other.end()
    assert status == 0, err
    other.whole()
    assert max(path.stat().st_mtime for path in sweep.commits()) < min(
        path.stat().st_mtime for path in other.commits()
    )


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[Callable[..., dict[str, str]]]:
    """A server as a user runs it, that can be killed and started again on its port and its database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {"PREFECT_HOME": str(tmp_path / "home"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    env |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    running: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        while running:
            os.killpg(running[-1].pid, signal.SIGKILL)
            running.pop().wait()

    def control(what: str) -> dict[str, str]:
        kill()
        if what == "start":
            quiet = subprocess.DEVNULL
            running.append(
                subprocess.Popen(
                    command, env={**os.environ, **env}, start_new_session=True, stdout=quiet, stderr=quiet
                )
            )
            assert wait_for_server(env["PREFECT_API_URL"], 100)
        return env

    yield control
    kill()


@pytest.mark.slow
def test_a_server_that_comes_back_has_the_record(
    fragile: Callable[..., dict[str, str]], file: Callable[..., Path], start: Callable[..., Sweep]
) -> None:
    env = fragile("start")
    sweep = start(file(sweep={"gpus": ["back"], "shard": 1}), env)
    sweep.until(2)
    fragile("kill")
    wait_for(lambda: len(sweep.commits()) == COUNT)  # capture goes on without it
    fragile("start")
    status, out, err = sweep.end()
    assert status == 0, err
    assert json.loads(out)["captured"] == COUNT
    assert "Traceback" not in err
    sweep.whole()
    runs = ask(env, "flow_runs/filter", {})
    assert "COMPLETED" in {run["state"]["type"] for run in runs}
    assert not {"RUNNING", "PENDING"} & {run["state"]["type"] for run in runs}
    second = start(file(sweep={"gpus": ["back"]}), env)  # the slot of the first is not left behind
    assert second.end()[0] == 0


@pytest.mark.slow
def test_a_server_that_never_comes_back(
    fragile: Callable[..., dict[str, str]], file: Callable[..., Path], start: Callable[..., Sweep]
) -> None:
    env = fragile("start")
    sweep = start(file(sweep={"workers": 2, "shard": 1, "patience": 3}), env)
    sweep.until(2)
    fragile("kill")
    status, out, err = sweep.end()
    assert status == 0, err
    assert json.loads(out)["committed"] == COUNT
    assert "the server has no record of its end" in err
    assert all(line.startswith(("capture ", "i2am: ")) for line in err.splitlines()), err
    sweep.whole()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(6))
def test_a_temporary_server_killed_at_any_moment(
    file: Callable[..., Path], start: Callable[..., Sweep], seed: int
) -> None:
    """From before the flow is known to its last state; twice in half of the cases."""
    moments, left = random.Random(seed), {}
    sweep = start(file(sweep={"gpus": [f"any-{seed}"], "shard": 1}), {"PREFECT_API_URL": ""})
    for _ in range(1 + seed % 2):
        wait_for(lambda: sweep.children("uvicorn") or sweep.process.poll() is not None)
        time.sleep(moments.uniform(6, 30))
        left |= descendants(sweep.process.pid)
        if sweep.process.poll() is None and sweep.children("uvicorn"):
            kill_temporary_server(sweep)
    status, out, err = sweep.end()
    if status == 2:  # before the server ever answered
        assert "did not start" in err
        return
    assert status == 0, err
    assert json.loads(out)["captured"] == COUNT
    assert "Traceback" not in err
    assert not alive(left)
    sweep.whole()
