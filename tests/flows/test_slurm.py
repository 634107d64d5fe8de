"""Analyses on a real SLURM cluster (opt in with ``-m slurm``), and what its jobs get without being told."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
import polars as pl
import pytest

from i2am.flows.analyze import job_queue_cluster
from i2am.flows.analyze.dask_cluster import computing
from i2am.flows.config.models import AnalysisConfig, ClusterClass, Computing
from i2am.storage.configuration.validate import override
from i2am.storage.configuration.yaml_file import parse_config
from i2am.storage.errors import ConfigError
from i2am.storage.format.layer_spec import LayerSpec
from tests.analysis.builders import build
from tests.flows.conftest import ROOT, spawn

SLURM = ClusterClass(class_name="dask_jobqueue.SLURMCluster")


def answers() -> bool:
    """Whether a SLURM cluster is there, with a node that is up."""
    if shutil.which("sinfo") is None:
        return False
    told = subprocess.run(
        ["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, timeout=20, check=False
    )
    return any(state.rstrip("*") in ("idle", "mix", "alloc") for state in told.stdout.split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and its study on threads."""
    if not answers():
        pytest.skip("no SLURM cluster: sinfo is absent, or names no node that is up; see docs/clusters.md")
    folder = tmp_path_factory.mktemp("slurm")
    layer = LayerSpec("large", 8, 40, (32, 32), (16, 16), ref_prefix=1)
    build(folder / "run.zarr", [layer], steps=6, samples=[f"s{i:02}" for i in range(60)], images=True)
    (folder / "plain.yaml").write_text("figures: 0\ndetails: 0\n")
    done = spawn("analyze", "run.zarr", "--out", "out", "--config", "plain.yaml", "-q", cwd=folder)
    assert done.status == 0, done.err
    return folder


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    """A folder with the run, and nothing else."""
    shutil.copytree(whole / "run.zarr", tmp_path / "run.zarr")
    return tmp_path


class Jobs:
    """An analysis on SLURM that goes on, and its jobs."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.folder = folder
        self.name = f"i2am-test-{uuid.uuid4().hex[:8]}"
        arguments = f"{{cores: 1, memory: 1GB, job_name: {self.name}}}"
        config = (
            f"cluster: {{kind: slurm, arguments: {arguments}}}\nworkers: {workers}\nfigures: 0\ndetails: 0\n"
        )
        (folder / "slurm.yaml").write_text(config)
        command = ["analyze", "run.zarr", "--out", "out", "--config", "slurm.yaml"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "i2am", *command],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def queue(self, what: str = "%i") -> list[str]:
        """Numbers of its jobs, or something else that squeue tells of them."""
        command = ["squeue", "-h", "-o", what, "-n", self.name]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()

    def await_line(self, words: str) -> None:
        """Read what the analysis tells until it has come to a place."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if words in line:
                return
        pytest.fail(f"it ended before {words!r}")

    def end(self) -> tuple[int, str]:
        """Exit status, and the rest of what it told; no job is left, and no file beside the results."""
        _, told = self.process.communicate(timeout=200)
        end = time.monotonic() + 20
        while self.queue() and time.monotonic() < end:  # jobs that are completing
            time.sleep(0.2)
        assert self.queue("%i-%t") == []
        names = {path.name for path in self.folder.iterdir()}
        assert names <= {"run.zarr", "run.marginals.zarr", "out", "slurm.yaml"}
        hidden = (self.folder / "out").glob("**/.*")
        assert [*hidden, *self.folder.rglob("*.tmp"), *self.folder.rglob("*.partial")] == []
        return self.process.returncode, told


@contextmanager
def on_slurm(folder: Path, workers: int = 2) -> Iterator[Jobs]:
    jobs = Jobs(folder, workers)
    try:
        yield jobs
    finally:
        jobs.process.kill()
        jobs.process.communicate()
        subprocess.run(["scancel", "-n", jobs.name], check=False)


def same(one: Path, other: Path) -> None:
    """The same marginals, maps and tables, to the last bit."""
    for part in ("run.marginals.zarr", "out/maps.zarr", "out/tables"):
        files = {path.relative_to(one) for path in (one / part).rglob("*") if path.is_file()}
        assert files == {path.relative_to(other) for path in (other / part).rglob("*") if path.is_file()}
        assert files
        for name in files:
            if name.suffix == ".parquet":
                assert pl.read_parquet(one / name).equals(pl.read_parquet(other / name)), name
            else:
                assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.slurm
def test_jobs_give_the_same_bytes_and_leave_nothing(whole: Path, place: Path) -> None:
    """Three jobs, of which a machine with two cores lets one wait."""
    with on_slurm(place, workers=3) as jobs:
        status, told = jobs.end()
    assert status == 0, told
    same(whole, place)


@pytest.mark.slurm
@pytest.mark.parametrize("many", [1, 2])
def test_jobs_that_are_killed_are_replaced(whole: Path, place: Path, many: int) -> None:
    with on_slurm(place) as jobs:
        jobs.await_line("marginals 2/")
        victims = jobs.queue()[:many]
        subprocess.run(["scancel", "--signal=KILL", "--full", *victims], check=True)
        status, told = jobs.end()
    assert victims
    assert status == 0, told
    same(whole, place)


@pytest.mark.slurm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["queued", "at work"])
def test_a_command_that_is_interrupted_takes_its_jobs_along(
    whole: Path, place: Path, number: signal.Signals, moment: str
) -> None:
    with on_slurm(place) as jobs:
        if moment == "queued":
            while not jobs.queue():
                assert jobs.process.poll() is None
        else:
            jobs.await_line("marginals 2/")
        jobs.process.send_signal(number)
        status, told = jobs.end()
    assert status == 130, told
    assert told.splitlines()[-1] == "i2am: interrupted"
    assert "Traceback" not in told


def test_slurm_by_its_short_name() -> None:
    long = {"cores": 4, "queue": "cpu"}
    for text in ("cluster: slurm", "cluster: {kind: slurm}", "cluster: {class: dask_jobqueue.SLURMCluster}"):
        assert parse_config(text, AnalysisConfig, "a.yaml").cluster == SLURM
    config = parse_config(
        f"cluster: {{kind: slurm, arguments: {long}, timeout: 9}}", AnalysisConfig, "a.yaml"
    )
    assert config.cluster == SLURM.model_copy(update={"arguments": long, "timeout": 9.0})
    with pytest.raises(ConfigError, match=r"unknown key 'cluster\.queue'"):
        parse_config("cluster: {kind: slurm, queue: cpu}", AnalysisConfig, "a.yaml")


def test_default_arguments_of_a_job() -> None:
    """Written as dask-jobqueue would hand it to sbatch."""
    dask_jobqueue = pytest.importorskip("dask_jobqueue")

    def script(**arguments: object) -> str:
        with dask_jobqueue.SLURMCluster(
            **job_queue_cluster.job_arguments(dask_jobqueue.SLURMCluster, arguments)
        ) as made:
            return str(made.job_script())

    plain = script()
    for words in ("--cpus-per-task=1", "--mem=2G", "--output=/dev/null", "--nthreads 1", sys.executable):
        assert words in plain, words
    told = script(cores=4, memory="8GB", job_extra_directives=["--nice"])
    for words in ("--cpus-per-task=4", "--mem=8G", "--nice", "--nthreads 4"):
        assert words in told, words
    assert "/dev/null" not in told
    with dask.config.set({"jobqueue.slurm.cores": 2, "jobqueue.slurm.log-directory": os.devnull}):
        configured = script()
    assert "--cpus-per-task=2" in configured
    assert "--output=" not in configured
    assert job_queue_cluster.job_arguments(dict, {"cores": 8}) == {"cores": 8}  # not of dask-jobqueue


def test_looking_for_the_class_leaves_ctrl_c_alone() -> None:
    """dask-jobqueue, when it is imported, makes Ctrl-C leave with the status 0."""
    code = (
        "import signal; from i2am.flows.analyze.local_cluster import _cluster_class; "
        "before = signal.getsignal(signal.SIGINT); "
        "_cluster_class('dask_jobqueue.SLURMCluster'); assert signal.getsignal(signal.SIGINT) is before"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_without_dask_jobqueue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with (
        pytest.raises(ConfigError, match=r"pip install 'i2am\[slurm\]'"),
        computing(override(Computing(), cluster="slurm")),
    ):
        pass


def test_workers_that_are_lost_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the end of the block, and in spite of a cluster that does not answer once."""
    asked: list[int] = []

    class Cluster:
        def scale(self, workers: int) -> None:
            asked.append(workers)
            if len(asked) == 1:
                raise OSError("the queue does not answer")

    monkeypatch.setattr(job_queue_cluster, "RENEW_SECONDS", 0.01)
    with job_queue_cluster.worker_count(Cluster(), 3):
        while len(asked) < 3:
            time.sleep(0.01)
    count = len(asked)
    time.sleep(0.05)
    assert asked == [3] * count
