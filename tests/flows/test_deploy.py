"""``i2am deploy`` against a real server: pools, deployments, schedules and triggers, as it shows them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import ROOT, spawn
from tests.flows.prefect_api import FIT, ask

pytestmark = pytest.mark.timeout(400)


def deployments(server: dict[str, str], name: str) -> dict[str, dict[str, Any]]:
    flows = {flow["id"]: flow["name"] for flow in ask(server, "flows/filter", {})}
    found = ask(server, "deployments/filter", {"deployments": {"name": {"any_": [name]}}})
    return {flows[each["flow_id"]]: each for each in found}


def automations(server: dict[str, str], name: str) -> list[dict[str, Any]]:
    return [each for each in ask(server, "automations/filter", {}) if f"/{name} " in each["name"]]


def test_pools_deployments_schedules_and_trigger(
    server: dict[str, str], config: Callable[..., Path], tmp_path: Path
) -> None:
    file = config(sweep={"gpus": [0, "MIG-1"]}, device="cuda")
    analysis = tmp_path / "analysis.yaml"
    analysis.write_text("details: 3\n")
    words = ("deploy", file, "--name", "lab", "--schedule", "0 1 * * *", "--timezone", "Europe/Berlin")
    words += ("--analysis-out", tmp_path / "results", "--analysis-config", analysis, "--after-sweep")
    words += ("--analysis-schedule", "30 6 * * 0", "--pool-gpu", "lab-gpu", "--pool-cpu", "lab-cpu", "--json")
    first = spawn(*words, env=server)
    assert first.status == 0, first.err
    assert first.json["created"] == ["lab-gpu", "lab-cpu"]
    second = spawn(*words, env=server)
    assert second.status == 0, second.err
    assert second.json == first.json | {"created": []}

    pools = {pool["name"]: pool["type"] for pool in ask(server, "work_pools/filter", {})}
    assert pools["lab-gpu"] == pools["lab-cpu"] == "process"

    found = deployments(server, "lab")
    assert set(found) == {"i2am-nightly-sweep", "i2am-nightly-analysis"}
    sweep, study = found["i2am-nightly-sweep"], found["i2am-nightly-analysis"]
    assert first.json["deployments"] == {
        "i2am-nightly-sweep/lab": sweep["id"],
        "i2am-nightly-analysis/lab": study["id"],
    }
    assert (sweep["work_pool_name"], study["work_pool_name"]) == ("lab-gpu", "lab-cpu")
    assert sweep["entrypoint"] == "i2am.flows.prefect.deployed_flows.nightly_sweep"
    assert study["entrypoint"] == "i2am.flows.prefect.deployed_flows.nightly_analysis"
    assert not sweep["pull_steps"]
    assert not study["pull_steps"]
    assert sweep["parameters"] == {"config": str(file)}
    assert study["parameters"] == {
        "run": str(file),
        "out": str(tmp_path / "results"),
        "config": str(analysis),
    }
    assert set(sweep["parameter_openapi_schema"]["properties"]) == {"config", "out", "retry_failed"}
    times = [[each["schedule"] for each in deployment["schedules"]] for deployment in (sweep, study)]
    assert times == [
        [{"cron": "0 1 * * *", "timezone": "Europe/Berlin", "day_or": True}],
        [{"cron": "30 6 * * 0", "timezone": "Europe/Berlin", "day_or": True}],
    ]
    assert {each["concurrency_options"]["collision_strategy"] for each in found.values()} == {"ENQUEUE"}
    (automation,) = automations(server, "lab")
    assert automation["trigger"]["expect"] == ["prefect.flow-run.Completed"]
    assert (
        automation["trigger"]["match_related"]["prefect.resource.id"] == f"prefect.deployment.{sweep['id']}"
    )
    assert [action["deployment_id"] for action in automation["actions"]] == [study["id"]]

    # A deployment is what the command says: what is not named any more is gone.
    other = spawn("deploy", file, "--name", "lab", "--analysis-out", tmp_path / "else", "--json", env=server)
    assert other.json["deployments"] == first.json["deployments"]
    found = deployments(server, "lab")
    assert [each["schedules"] for each in found.values()] == [[], []]
    assert found["i2am-nightly-analysis"]["parameters"]["out"] == str(tmp_path / "else")
    assert automations(server, "lab") == []


def test_without_a_file_the_pools_alone(server: dict[str, str]) -> None:
    made = spawn("deploy", "--pool-gpu", "big", "--pool-cpu", "small", env=server)
    assert made.status == 0, made.err
    assert "work pool big created: prefect worker start --pool big" in made.out
    assert {"big", "small"} <= {pool["name"] for pool in ask(server, "work_pools/filter", {})}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--schedule", "at noon"], "schedule 'at noon'.*expected five fields"),
        (["--schedule", "0 1 * * *", "--timezone", "Moon"], "timezone 'Moon'"),
        (["--after-sweep"], "expected --analysis-out FOLDER"),
        (["--analysis-out", "x", "--analysis-config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_refused_before_anything_is_made(
    server: dict[str, str], config: Callable[..., Path], words: list[str], said: str
) -> None:
    spawn("deploy", config(), "--pool-gpu", "never", *words, env=server).refused(said)
    assert "never" not in {pool["name"] for pool in ask(server, "work_pools/filter", {})}


def test_a_server_there_must_be(config: Callable[..., Path]) -> None:
    spawn("deploy", env={"PREFECT_API_URL": ""}).refused("expected its URL in PREFECT_API_URL")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        api = f"http://127.0.0.1:{nobody.getsockname()[1]}/api"
        spawn("deploy", config(), env={"PREFECT_API_URL": api}).refused("no Prefect server answers at")
    spawn("deploy", "--schedule", "0 1 * * *").refused("expected the configuration of a capture")


@pytest.mark.skipif(not FIT, reason="fastapi and sqlalchemy are not those of constraints.txt")
def test_prefect_yaml_says_the_same(
    server: dict[str, str], config: Callable[..., Path], tmp_path: Path
) -> None:
    assert spawn("deploy", env=server).status == 0
    files = {"I2AM_CONFIG": str(config()), "I2AM_RESULTS": str(tmp_path / "results")}
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=ROOT,
        env={**os.environ, **server, **files},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = deployments(server, "nightly")
    trigger = automations(server, "nightly")[0]["trigger"]
    ours = spawn(
        "deploy", config(), "--name", "nightly", "--schedule", "0 1 * * *", "--analysis-out",
        tmp_path / "results", "--analysis-schedule", "0 6 * * 0", "--after-sweep", env=server,
    )  # fmt: skip
    assert ours.status == 0, ours.err
    assert trigger["expect"] == automations(server, "nightly")[0]["trigger"]["expect"]
    same = ("work_pool_name", "entrypoint", "job_variables", "concurrency_options", "tags")
    for flow, deployment in deployments(server, "nightly").items():
        assert {key: deployment[key] for key in same} == {key: theirs[flow][key] for key in same}
        told = {key: value for key, value in deployment["parameters"].items() if value is not None}
        assert told == theirs[flow]["parameters"]
        assert [each["schedule"] for each in deployment["schedules"]] == [
            each["schedule"] for each in theirs[flow]["schedules"]
        ]
