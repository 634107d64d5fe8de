"""Sweeps as Prefect flows: what the server shows, and what a lost server costs (states, never samples)."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from i2am.flows.prefect import reporter
from i2am.flows.sweep.gpu_lock import FOLDER
from i2am.storage.locations.file_lock import try_lock
from tests.flows.conftest import spawn
from tests.flows.prefect_api import UserServer, alive, ask, descendants, wait_for
from tests.flows.sweeps import COUNT, WORKER, Sweep, sweep_config, sweeps

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def many(config: Callable[..., Path]) -> Callable[..., Path]:
    return lambda **changes: sweep_config(config, **({"arguments": {"delay": 0.5}} | changes))


@pytest.fixture
def start() -> Iterator[Callable[..., Sweep]]:
    with sweeps() as starter:
        yield starter


def flow_runs(server: dict[str, str], out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(
        server, "flow_runs/filter", {"flow_runs": {"name": {"any_": [f"sweep {out}"]}}}
    )
    return found


def log_lines(server: dict[str, str], folder: Path) -> list[str]:
    """The log of the flow run that captures into ``folder``."""
    runs = {"flow_run_id": {"any_": [run["id"] for run in flow_runs(server, folder / "tiny.zarr")]}}
    return [log["message"] for log in ask(server, "logs/filter", {"logs": runs})]


def test_the_server_shows_states_tasks_logs_and_artifacts(
    server: dict[str, str], many: Callable[..., Path], start: Callable[..., Sweep], tmp_path: Path
) -> None:
    """Also of a process that was killed, a sample that failed, and a GPU that was waited for."""
    arguments = {"broken": ["scene-0000003"], "mended": str(tmp_path / "mended"), "delay": 0.5}
    file = many(arguments=arguments, sweep={"gpus": ["test-seen"]})
    lock = try_lock(FOLDER / "i2am-gpu-test-seen.lock")
    assert lock is not None
    with lock:
        sweep = start(file, env=server)
        wait_for(lambda: any("waiting for GPU test-seen" in line for line in log_lines(server, tmp_path)))
    sweep.until(1)
    (worker,) = sweep.children(WORKER)
    os.kill(worker, signal.SIGKILL)
    status, out, err = sweep.end()
    assert status == 1, err
    summary = json.loads(out)
    (run,) = flow_runs(server, tmp_path / "tiny.zarr")
    flows = {flow["id"]: flow["name"] for flow in ask(server, "flows/filter", {})}
    assert flows[run["flow_id"]] == "i2am-sweep"
    assert run["state"]["type"] == "COMPLETED"
    assert run["start_time"] < run["end_time"]
    assert run["parameters"]["config"]["sweep"]["shard"] == 2
    mine = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    tasks = {task["name"]: task for task in ask(server, "task_runs/filter", mine)}
    assert sorted(tasks) == [
        "shard 0: scene-0000000 ...", "shard 1: scene-0000002 ...", "shard 2: scene-0000004 ...",
    ]  # fmt: skip
    assert {task["state"]["type"] for task in tasks.values()} == {"COMPLETED"}
    assert all(task["start_time"] < task["end_time"] for task in tasks.values())
    rows = {row["shard"]: row for row in summary["shards"]}
    tried = [ask(server, f"task_run_states/?task_run_id={task['id']}") for task in tasks.values()]
    assert sorted(len(states) for states in tried) == [
        3,
        3,
        5,
    ]  # Pending, Running, (Awaiting Retry, Running,) Completed
    logs = ask(server, "logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
    lines = [log["message"] for log in logs]
    assert any(line.startswith("waiting for GPU test-seen") for line in lines)
    assert any("the capture process ended with status -9" in line for line in lines)
    assert sum(line.startswith("capture ") for line in lines) == COUNT - 1

    artifacts = {each["key"]: each["data"] for each in ask(server, "artifacts/filter", mine)}
    assert artifacts["i2am-sweep-progress"] == pytest.approx(100 * (COUNT - 1) / COUNT)
    assert json.loads(artifacts["i2am-sweep-shards"]) == list(rows.values())
    assert all(row["where"].startswith(f"{socket.gethostname()} GPU test-seen ") for row in rows.values())
    (failure,) = json.loads(artifacts["i2am-sweep-failures"])
    assert failure["sample"] == "scene-0000003"
    assert "cannot be painted" in failure["error"]
    for words in ("| committed | 5 of 6 |", "| failed | 1 |", "samples a minute", "| size | "):
        assert words in artifacts["i2am-sweep-summary"]


@pytest.mark.parametrize("how", [pytest.param("refused", marks=pytest.mark.slow), "interrupted"])
def test_a_sweep_that_ends_early_has_its_last_state(
    server: dict[str, str], many: Callable[..., Path], start: Callable[..., Sweep], how: str
) -> None:
    sweep = start(many(adapter="nope" if how == "refused" else None), env=server)
    if how == "interrupted":
        sweep.until(1)
        sweep.process.send_signal(signal.SIGINT)
    status, _, err = sweep.end()
    (run,) = flow_runs(server, sweep.run)
    if how == "refused":
        assert (status, run["state"]["type"]) == (2, "FAILED"), err
        assert "unknown adapter 'nope'" in run["state"]["message"]
    else:
        assert (status, run["state"]["type"]) == (130, "CRASHED"), err


def test_a_sweep_outlives_its_temporary_server(
    many: Callable[..., Path], start: Callable[..., Sweep]
) -> None:
    sweep = start(many(), "--prefect", "--quiet")
    sweep.until(1)
    left = descendants(sweep.process.pid)
    (server,) = sweep.children("uvicorn")
    os.kill(server, signal.SIGKILL)
    status, out, err = sweep.end()
    assert status == 0, err
    assert json.loads(out)["captured"] == COUNT
    (line,) = err.splitlines()
    assert line.startswith("i2am: no answer from the Prefect server http://127.0.0.1:")
    assert not alive(left)
    sweep.valid()


def test_a_server_that_is_not_there_holds_nothing_up(many: Callable[..., Path], tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        api = f"http://127.0.0.1:{nobody.getsockname()[1]}/api"
        done = spawn("sweep", many(arguments={}), "--json", "--quiet", env={"PREFECT_API_URL": api})
    assert (done.status, done.json["captured"]) == (0, COUNT), done.err
    assert done.err.splitlines() == [f"i2am: no answer from the Prefect server {api}; going on without it"]


class FakeClient:
    """Fails as told, one error for each try; remembers what it took."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors, self.taken = list(errors), []

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *error: object) -> None: ...

    def create_logs(self, entries: list[dict[str, Any]]) -> None:
        if error := self.errors.pop(0) if self.errors else None:
            raise error
        self.taken += [entry["message"] for entry in entries]

    def request(self, *words: Any, **options: Any) -> httpx.Response:
        return httpx.Response(201, json={"id": "1"})


def test_reports_wait_for_a_lost_server_and_stay_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is refused, or that cannot be made, stops no other."""
    refused = httpx.Response(422, request=httpx.Request("POST", "http://here"))
    client = FakeClient(
        httpx.ConnectError("lost"), httpx.ReadTimeout("lost"), None,
        PrefectHTTPStatusError("no", request=refused.request, response=refused), ValueError("a defect"),
    )  # fmt: skip
    monkeypatch.setattr(reporter, "get_client", lambda **options: client)
    monkeypatch.setattr(reporter, "RETRY_SECONDS", 0.01)
    with reporter.Reporter("sweep", "a.zarr", "some-flow-run") as reports:
        for line in ("first", "refused", "impossible", "last"):
            reports.log(line)
    assert client.taken == ["first", "last"]


def test_what_is_left_to_report_is_dropped_in_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reporter, "get_client", lambda **options: FakeClient(*[httpx.ConnectError("")] * 999))
    monkeypatch.setattr(reporter, "RETRY_SECONDS", 0.01)
    began = time.monotonic()
    with reporter.Reporter("sweep", "a.zarr", "some-flow-run", patience=0.2) as reports:
        for number in range(3):
            reports.log(f"line {number}")
    assert time.monotonic() - began < 5
    assert capsys.readouterr().err.count("no answer from the Prefect server") == 1


@pytest.mark.slow
def test_a_server_that_comes_back_has_the_record(
    many: Callable[..., Path], start: Callable[..., Sweep], tmp_path: Path
) -> None:
    with UserServer(tmp_path / "home") as server:
        sweep = start(many(sweep={"shard": 1, "patience": 60}), env=server.env)
        sweep.until(2)
        server.kill()
        wait_for(lambda: len(sweep.commits()) == COUNT)  # the capture goes on without it
        server.start()
        status, out, err = sweep.end()
        assert status == 0, err
        assert json.loads(out)["captured"] == COUNT
        sweep.valid()
        (run,) = flow_runs(server.env, sweep.run)
        assert run["state"]["type"] == "COMPLETED"
        mine = {"flow_runs": {"id": {"any_": [run["id"]]}}}
        tasks = ask(server.env, "task_runs/filter", mine)
        assert [task["state"]["type"] for task in tasks] == ["COMPLETED"] * COUNT


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_temporary_server_killed_at_any_moment(
    many: Callable[..., Path], start: Callable[..., Sweep], seed: int
) -> None:
    """From before the flow is known to its last state."""
    sweep = start(many(sweep={"shard": 1}), "--prefect")
    wait_for(lambda: sweep.children("uvicorn"))
    time.sleep(random.Random(seed).uniform(6, 30))
    left = descendants(sweep.process.pid)
    for server in sweep.children("uvicorn"):
        os.kill(server, signal.SIGKILL)
    status, out, err = sweep.end()
    assert not alive(left)
    if status == 2:  # before the server ever answered
        assert "did not start" in err
        return
    assert status == 0, err
    assert json.loads(out)["captured"] == COUNT
    sweep.valid()
