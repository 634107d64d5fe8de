"""The flows on Prefect's own temporary server: states, parameters, artifacts, as its API shows them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from i2am.flows.prefect.choose import as_flow
from i2am.storage.errors import MissingDependency
from tests.flows.conftest import ROOT, spawn
from tests.flows.prefect_api import ask, wait_for

pytestmark = pytest.mark.timeout(400)


def test_capture_and_analysis_as_flows(
    server: dict[str, str], config: Callable[..., Path], tmp_path: Path
) -> None:
    captured = spawn("capture", config(), "--json", env=server)
    assert captured.status == 0, captured.err
    assert captured.json["committed"] == 2
    analysed = spawn("analyze", tmp_path / "tiny.zarr", "--out", tmp_path / "out", "--json", env=server)
    assert analysed.status == 0, analysed.err

    flows = {flow["id"]: flow["name"] for flow in ask(server, "flows/filter", {})}
    names = [f"capture {tmp_path / 'tiny.zarr'}", f"analyze ['{tmp_path / 'tiny.zarr'}']"]
    mine = {"flow_runs": {"name": {"any_": names}}}
    runs = {flows[run["flow_id"]]: run for run in ask(server, "flow_runs/filter", mine)}
    assert set(runs) == {"i2am-capture", "i2am-analyze"}
    assert {run["state"]["type"] for run in runs.values()} == {"COMPLETED"}
    assert runs["i2am-capture"]["parameters"]["config"]["call"] == {"num_inference_steps": 2}
    tasks = {task["name"].rsplit("-", 1)[0]: task for task in ask(server, "task_runs/filter", mine)}
    assert set(tasks) == {"capture samples", "publish capture", "analyse run", "publish analysis"}
    assert {task["state"]["type"] for task in tasks.values()} == {"COMPLETED"}

    artifacts = {artifact["key"]: artifact for artifact in ask(server, "artifacts/filter", mine)}
    assert artifacts["i2am-capture-progress"]["data"] == 100.0
    rows = json.loads(artifacts["i2am-capture-samples"]["data"])
    assert [row["sample"] for row in rows] == ["scene-0000000", "scene-0000001"]
    assert "2 samples captured" in artifacts["i2am-capture-summary"]["data"]
    scores = json.loads(artifacts["i2am-analysis-scores"]["data"])
    assert {row["direction"] for row in scores} == {"r2g", "g2r"}
    assert str(tmp_path / "out" / "report" / "index.html") in unescape(
        artifacts["i2am-analysis-summary"]["data"]
    )
    logs = ask(server, "logs/filter", {"logs": {"flow_run_id": {"any_": [runs["i2am-capture"]["id"]]}}})
    assert any("capture 2/2: scene-0000001" in log["message"] for log in logs)


def test_a_flow_that_fails_is_one_line_and_a_failed_state(
    server: dict[str, str], config: Callable[..., Path], tmp_path: Path
) -> None:
    spawn("capture", config(adapter="nope"), "--quiet", env=server).refused("unknown adapter 'nope'")
    mine = {"flow_runs": {"name": {"any_": [f"capture {tmp_path / 'tiny.zarr'}"]}}}
    (run,) = ask(server, "flow_runs/filter", mine)
    assert run["state"]["type"] == "FAILED"


def test_the_way_of_running_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert as_flow(False, False) is False
    assert as_flow(False, True) is False
    monkeypatch.setattr(os, "environ", dict(os.environ))  # as_flow makes Prefect quiet through it
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:1/api"
    assert as_flow(False, True) is False
    assert as_flow(False, False) is True
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_without_prefect_jobs_run_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert as_flow(False, False) is False
    with pytest.raises(MissingDependency, match=r"--prefect needs Prefect; pip install 'i2am\[flows\]'"):
        as_flow(True, False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_no_child_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    """The parent is interrupted, terminated or killed: its child and what its child started are gone."""
    code = (
        "import sys\n"
        "from i2am.flows.subprocesses import run, termination_interrupts\n"
        "try:\n"
        "    with termination_interrupts(): run([sys.executable, '-c', sys.argv[1], sys.argv[2]])\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    child = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    note = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", code, child, str(note)], cwd=ROOT)
    pid = int(wait_for(lambda: note.exists() and note.read_text()))
    parent.send_signal(number)
    assert parent.wait(30) == (-signal.SIGKILL if number is signal.SIGKILL else 130)
    wait_for(lambda: not _alive(pid))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
