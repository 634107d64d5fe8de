"""How a cluster is named, on the command line and in a file; what is refused, with which words."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import numpy as np
import pytest

from i2am.flows.analyze.dask_cluster import computing
from i2am.flows.config.models import Address, AnalysisConfig, ClusterClass, Computing, Processes, Threads
from i2am.storage.configuration.validate import override
from i2am.storage.configuration.yaml_file import parse_config
from i2am.storage.errors import ConfigError
from tests.flows.conftest import Outcome

I2am = Callable[..., Outcome]


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("threads", Threads()),
        ("processes", Processes()),
        ("tcp://10.0.0.1:8786", Address(address="tcp://10.0.0.1:8786")),
        ("shared/scheduler.json", Address(scheduler_file=Path("shared/scheduler.json"))),
        ("dask_jobqueue.SLURMCluster", ClusterClass(class_name="dask_jobqueue.SLURMCluster")),
        ({"address": "tls://host:1", "timeout": 5}, Address(address="tls://host:1", timeout=5)),
        ({"kind": "processes", "threads_per_worker": 2}, Processes(threads_per_worker=2)),
        ({"class": "a.B", "arguments": {"c": 1}}, ClusterClass(class_name="a.B", arguments={"c": 1})),
    ],
)
def test_shorthands(short: object, long: object) -> None:
    config = parse_config(f"cluster: {json.dumps(short)}", AnalysisConfig, "a.yaml")
    assert config.cluster == long
    assert AnalysisConfig.model_validate_json(config.model_dump_json(by_alias=True)) == config


def test_options_go_over_the_file() -> None:
    config = parse_config("workers: 3\ntime_groups: 2", AnalysisConfig, "a.yaml")
    changed = override(config, workers=None, cluster="processes")
    assert (changed.workers, changed.time_groups, changed.cluster) == (3, 2, Processes())
    assert override(config) is config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cluster: thread", r"'cluster'; expected one of 'threads', .*; got 'thread'$"),
        ("cluster: {adress: 'tcp://a:1'}", r"missing key 'cluster\.kind'"),
        ("cluster: 'tcp:// a'", r"'cluster\.address'; expected string should match"),
        (
            "cluster: {address: 'tcp://a:1', timeout: 0}",
            r"'cluster\.timeout'; expected greater than 0; got 0",
        ),
        ("cluster: {address: 'tcp://a:1', scheduler_file: s}", r"exactly one of address and scheduler_file"),
        ("cluster: {class: B}", r"'cluster\.class'; expected string should match"),
        (
            "cluster: {class: a.B, argument: {}}",
            r"unknown key 'cluster\.argument'; did you mean 'arguments'\?",
        ),
        ("cluster: 'tcp://a:1'\nworkers: 2", r"no workers together with an address"),
        ("workers: 0", r"'workers'; expected greater than or equal to 1; got 0"),
    ],
)
def test_what_is_wrong_in_a_file(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_config(text, AnalysisConfig, "a.yaml")
    assert "\n" not in str(caught.value)


def test_maps_and_scores_on_chosen_clusters(i2am: I2am, run: Path, tmp_path: Path) -> None:
    plain = ["maps", run, "--level", "head", "--workers", "1", "--out"]
    assert i2am(*plain, tmp_path / "threads.npz").status == 0
    assert i2am(*plain, tmp_path / "processes.npz", "--cluster", "processes").status == 0
    with np.load(tmp_path / "threads.npz") as one, np.load(tmp_path / "processes.npz") as other:
        np.testing.assert_array_equal(one["maps"], other["maps"])
    scores = i2am("imacs", run, "--json").json
    assert i2am("imacs", run, "--json", "--cluster", "threads", "--workers", "1").json == scores


def test_a_performance_report(i2am: I2am, run: Path, tmp_path: Path) -> None:
    """On threads, which are then a cluster in this process."""
    page, file = tmp_path / "dask.html", tmp_path / "a.yaml"
    file.write_text("figures: 0\ndetails: 0\nworkers: 2")
    command = ["analyze", run, "--out", tmp_path / "out", "-q", "--config", file, "--report-dask", page]
    assert i2am(*command).status == 0
    assert "Dask Performance Report" in page.read_text()
    assert "<script src=" not in page.read_text()
    assert not list(tmp_path.glob(".report-*"))
    page.write_text("a letter")
    i2am(*command).refused("dask.html exists and is no report of Dask")
    assert page.read_text() == "a letter"


def test_a_report_replaces_a_report_and_only_after_success(tmp_path: Path) -> None:
    page = tmp_path / "dask.html"
    arguments = {"processes": False, "dashboard_address": ":0"}
    cluster = {"class": "distributed.LocalCluster", "arguments": arguments}
    where = override(Computing(), cluster=cluster, report_dask=str(page), workers=1)
    with pytest.raises(RuntimeError, match="mine"), computing(where):
        raise RuntimeError("mine")
    assert list(tmp_path.iterdir()) == []
    with computing(where):
        assert dask.delayed(abs)(-1).compute() == 1
    page.write_text(page.read_text()[:4096])
    with computing(where):
        assert dask.delayed(abs)(-2).compute() == 2
    assert len(page.read_text()) > 4096
    assert dask.config.get("scheduler", None) is None


def test_invalid_report_paths(i2am: I2am, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["analyze", run, "--out", tmp_path / "out", "-q", "--report-dask"]
    i2am(*command, tmp_path / "dask.txt").refused(r"expected a name that ends in \.html; got '\.txt'")
    i2am(*command, tmp_path / "none" / "dask.html").refused("none does not exist; make it first")
    i2am(*command, run / "dask.html").refused("is inside the run")
    (tmp_path / "folder.html").mkdir()
    i2am(*command, tmp_path / "folder.html").refused("folder.html exists and is no report")

    def no_bokeh(name: str) -> str:
        from importlib.metadata import PackageNotFoundError

        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", no_bokeh)
    i2am(*command, tmp_path / "dask.html").refused("needs bokeh, here and on the scheduler")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def silent_listener() -> Iterator[str]:
    """The address of somebody who listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


class SilentCluster:
    """A class that looks like a cluster and is none."""

    closed = 0

    def __init__(self, works: bool = False) -> None:
        if not works:
            raise ValueError("it wants to be told\nmore")

    def scale(self, workers: int) -> None:
        raise RuntimeError(f"no {workers} to be had")

    def close(self) -> None:
        SilentCluster.closed += 1


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (
            "distribted.LocalCluster",
            "a module that can be imported; got ModuleNotFoundError: No module named",
        ),
        ("distributed.LocalClustr", r"'LocalClustr'; .*; did you mean 'LocalCluster'\?"),
        ("builtins.dict", "a class of Dask clusters, such as distributed.LocalCluster; got <class 'dict'>"),
        ("os.path.join", "a class of Dask clusters, such as distributed.LocalCluster; got <function join"),
        (
            "tests.flows.test_cluster_options.SilentCluster",
            "got ValueError: it wants to be told more; correct",
        ),
        ("none.json", "scheduler file none.json does not exist; expected what `dask scheduler"),
        (
            "gopher://127.0.0.1:1",
            "no Dask scheduler answers at gopher://127.0.0.1:1; .*unknown address scheme",
        ),
        ("somewhere", "command line: 'cluster'; expected one of"),
    ],
)
def test_invalid_clusters(
    i2am: I2am, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.yaml"
    file.write_text("{}")
    if cluster.endswith(".json"):
        file.write_text(f"cluster: {{scheduler_file: {cluster}, timeout: 0.2}}")
        i2am("analyze", run, "--out", tmp_path / "out", "-q", "--config", file).refused(words)
    else:
        i2am("analyze", run, "--out", tmp_path / "out", "-q", "--cluster", cluster).refused(words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"address": "nowhere"}'])
def test_invalid_scheduler_files(i2am: I2am, run: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    outcome = i2am("analyze", run, "--out", tmp_path / "out", "-q", "--cluster", tmp_path / "s.json")
    outcome.refused("scheduler file .*JSON with an address|no Dask scheduler answers at nowhere")


def test_addresses_that_nobody_answers(i2am: I2am, run: Path, tmp_path: Path, silent_listener: str) -> None:
    for address in (silent_listener, "tcp://127.0.0.1:1"):
        (tmp_path / "a.yaml").write_text(f"cluster: {{address: '{address}', timeout: 0.3}}")
        outcome = i2am("analyze", run, "--out", tmp_path / "out", "-q", "--config", tmp_path / "a.yaml")
        outcome.refused(f"no Dask scheduler answers at {address}; expected an answer within 0.3 s")


def test_a_cluster_without_workers(i2am: I2am, run: Path, tmp_path: Path) -> None:
    arguments = "{n_workers: 0, dashboard_address: ':0'}"
    text = f"cluster: {{class: distributed.LocalCluster, arguments: {arguments}, timeout: 0.3}}"
    (tmp_path / "a.yaml").write_text(text)
    i2am("analyze", run, "--out", tmp_path / "out", "-q", "--config", tmp_path / "a.yaml").refused(
        "has no worker; expected at least one within 0.3 s; got none; start workers"
    )


def test_a_cluster_that_fails_after_its_start_is_closed() -> None:
    name = "tests.flows.test_cluster_options.SilentCluster"
    where = override(Computing(), cluster={"class": name, "arguments": {"works": True}}, workers=3)
    before = SilentCluster.closed
    with pytest.raises(Exception, match="got RuntimeError: no 3 to be had"), computing(where):
        os.abort()
    assert SilentCluster.closed == before + 1
