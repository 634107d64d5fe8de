"""Analyses on threads, worker processes and clusters that others run: the same bytes, whatever dies."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import dask
import polars as pl
import psutil
import pytest

from i2am.analysis.dask_tasks import run_tasks
from i2am.analysis.events import Event, StageAdvanced, StageStarted
from i2am.analysis.options import StudyOptions
from i2am.analysis.study.study import analyze
from i2am.flows.analyze.dask_cluster import computing
from i2am.flows.config.models import Computing
from i2am.storage.configuration.validate import override
from i2am.storage.errors import ClusterError, MissingDependency
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.run import Run
from tests.analysis.builders import build
from tests.flows.conftest import Outcome
from tests.flows.remote import Cluster, break_package, die_at, foreign_cluster, state_of_worker

I2am = Callable[..., Outcome]

OWN = """
from i2am import Aggregation

def chunk(attention):
    return attention.probabilities("g2r").max(-1).mean(-1)

peak = Aggregation("peak", chunk)
"""


@pytest.fixture(scope="module")
def study_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two samples; the larger layer is cut into slabs of steps (see `cut`)."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "own_aggregation.py").write_text(OWN)
    layers = [
        LayerSpec("large", 2, 16, (16, 16), (8, 8), ref_prefix=1),
        LayerSpec("small", 2, 16, (8, 8), (8, 8), ref_prefix=1),
    ]
    return build(folder / "run.zarr", layers, steps=4, samples=("a", "b"), images=True)[0]


@pytest.fixture(autouse=True)
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of the larger layer make a slab."""
    monkeypatch.setattr("i2am.analysis.reduction.reduce.SLAB_BYTES", 2 * 2 * (256 + 65) * 16 * 2)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with foreign_cluster(tmp_path_factory.mktemp("foreign") / "there", workers=2) as cluster:
        yield cluster


def study(
    run: Run, out: Path, tell: Callable[[Event], None] | None = None, **where: Any
) -> dict[str, bytes | pl.DataFrame]:
    """Everything that a study writes and keeps, computed as `where` says; the path is a relative one."""
    out.mkdir()
    options = StudyOptions(
        figures=0, details=0, store=str(out / "kept.zarr"), aggregations=("own_aggregation:peak",)
    )
    with chdir(Path(run.path).parent), computing(override(Computing(), **where)):
        analyze(run, os.path.relpath(out / "results"), options, on_event=tell)
    found: dict[str, bytes | pl.DataFrame] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".parquet":
            found[name] = pl.read_parquet(path)
        elif path.is_file() and ".zarr/" in name:
            found[name] = path.read_bytes()
    left = [path.name for path in out.rglob("*") if path.suffix in (".tmp", ".partial")]
    assert left + [path.name for path in out.rglob(".*")] == []
    return found


def same(one: dict[str, bytes | pl.DataFrame], other: dict[str, bytes | pl.DataFrame]) -> None:
    assert list(one) == list(other)
    for name, value in one.items():
        theirs = other[name]
        if isinstance(value, pl.DataFrame):
            assert isinstance(theirs, pl.DataFrame)
            assert value.equals(theirs), name
        else:
            assert value == theirs, name


@pytest.fixture(scope="module")
def expected(study_run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | pl.DataFrame]:
    """The study on one thread."""
    found = study(study_run, tmp_path_factory.mktemp("expected") / "one", workers=1)
    for part in ("kept.zarr/large/r2g/c/0", "results/maps.zarr/r2g/by_head/c/", "aggregations.zarr/peak"):
        assert any(part in name for name in found), part
    assert isinstance(found["results/tables/unified.parquet"], pl.DataFrame)
    return found


def children() -> list[psutil.Process]:
    """Worker processes of our own clusters."""
    found = psutil.Process().children(recursive=True)
    return [each for each in found if "spawn_main" in " ".join(each.cmdline())]


def test_two_threads(study_run: Run, expected: Any, tmp_path: Path) -> None:
    same(study(study_run, tmp_path / "two", workers=2), expected)


def test_a_cluster_by_address(study_run: Run, expected: Any, foreign: Cluster, tmp_path: Path) -> None:
    told: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, StageAdvanced) and event.stage == "marginals":
            assert event.total == 4
            told.append(event.done)

    same(study(study_run, tmp_path / "there", listen, cluster=str(foreign.file)), expected)
    assert told == sorted(set(told))
    assert told[-1] == 4
    with computing(override(Computing(), cluster=str(foreign.file))):
        from distributed import default_client

        for state in default_client().run(state_of_worker).values():
            assert state == {"loaded": [], "outside": [2], "inside": [1]}
    assert all(worker.poll() is None for worker in foreign.workers)  # they are not ours to close


def test_worker_processes_that_are_killed_in_the_middle_of_writing(
    study_run: Run, expected: Any, tmp_path: Path
) -> None:
    """One dies with a temporary file of marginals, one with a chunk of maps; nannies start others."""
    from distributed import default_client

    before: dict[str, set[int]] = {}

    def pids() -> set[int]:
        return set(default_client().run(os.getpid).values())

    def listen(event: Event) -> None:
        if not isinstance(event, StageStarted) or event.stage not in ("marginals", "maps", "tables"):
            return
        client = default_client()
        before[event.stage] = pids()
        if event.stage == "marginals":  # all layers of all samples: each worker writes some
            client.run(die_at, "fsync", workers=[min(client.nthreads())])
        elif event.stage == "maps":  # few chunks: whoever writes the first
            client.run(die_at, "replace")
        else:
            state = next(iter(client.run(state_of_worker).values()))
            assert (state["loaded"], state["inside"]) == ([], [1])

    same(study(study_run, tmp_path / "killed", listen, cluster="processes", workers=2), expected)
    assert len(before["marginals"] - before["maps"]) == 1
    assert before["maps"] - before["tables"]
    assert children() == []


def test_a_cluster_that_loses_a_worker_at_work_and_then_its_scheduler(
    study_run: Run, expected: Any, tmp_path: Path
) -> None:
    """The other worker does the work of the one that is killed; without a scheduler, one clear error."""
    from distributed import default_client

    with foreign_cluster(tmp_path / "there", workers=2) as cluster:
        set_traps: list[str] = []

        def listen(event: Event) -> None:
            if isinstance(event, StageStarted) and event.stage == "marginals":
                client = default_client()
                set_traps.append(min(client.nthreads()))  # four tasks for two workers: each gets some
                client.run(die_at, "fsync", workers=set_traps)

        same(study(study_run, tmp_path / "one-left", listen, cluster=str(cluster.file)), expected)
        assert len(set_traps) == 1
        assert [worker.poll() for worker in cluster.workers].count(-signal.SIGKILL) == 1
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
            pytest.raises(ClusterError, match="the Dask scheduler was lost"),
            computing(override(Computing(), cluster=str(cluster.file))),
        ):
            numbers = (dask.delayed(abs)(-number) for number in range(100_000))
            run_tasks(numbers, lambda _: cluster.scheduler.kill())


def test_a_task_that_kills_every_worker_is_one_error() -> None:
    where = override(Computing(), cluster="processes", workers=1)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        pytest.raises(ClusterError, match="ended every worker that ran it; got workers lost: 1"),
        computing(where),
    ):
        run_tasks([dask.delayed(os._exit)(1)])
    assert children() == []


@pytest.mark.parametrize(("harm", "words"), [("lack", "cannot run this package"), ("age", "another version")])
def test_workers_that_would_compute_something_else_are_refused(
    foreign: Cluster, harm: str, words: str
) -> None:
    from distributed import Client

    where = override(Computing(), cluster=str(foreign.file))
    with Client(scheduler_file=str(foreign.file)) as client:
        client.run(break_package, harm)
        try:
            with pytest.raises(ClusterError, match=words), computing(where):
                pass
        finally:
            client.run(break_package, "")


def test_without_distributed_there_are_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with computing(Computing()):
        assert run_tasks([dask.delayed(abs)(-1)]) == [1]
    with (
        pytest.raises(MissingDependency, match=r"needs? dask.distributed; .*pip install 'i2am\[flows\]'"),
        computing(override(Computing(), cluster="processes")),
    ):
        pass


def test_a_handshake_that_breaks_off_is_no_word_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distributed import default_client
    from distributed.comm import tcp

    broken, warn, records = threading.Event(), tcp.logger.warning, list[logging.LogRecord]()

    def warning(*words: Any) -> None:
        warn(*words)
        broken.set()

    monkeypatch.setattr(tcp.logger, "warning", warning)
    monkeypatch.setattr(tcp.logger, "handle", records.append)
    with computing(override(Computing(), cluster="processes", workers=1)):
        host, port = default_client().scheduler.address.removeprefix("tls://").split(":")
        socket.create_connection((host, int(port))).close()
        assert broken.wait(60)
        assert run_tasks([dask.delayed(abs)(-1)]) == [1]
    assert records == []


def test_what_was_configured_before_comes_back_even_after_an_error() -> None:
    before = dask.config.get("scheduler", None), dask.config.get("num_workers", None)
    for cluster in ("threads", "processes"):
        with (
            pytest.raises(RuntimeError, match="mine"),
            computing(override(Computing(), cluster=cluster, workers=1)),
        ):
            raise RuntimeError("mine")
        assert (dask.config.get("scheduler", None), dask.config.get("num_workers", None)) == before
    assert children() == []


def test_the_version_check_survives_the_loss_of_a_worker(tmp_path: Path) -> None:
    """The other answers; if all are lost the command says so."""
    from distributed import Client

    from i2am.flows.analyze.dask_cluster import _check_workers

    with (
        foreign_cluster(tmp_path / "there", workers=2) as cluster,
        Client(scheduler_file=str(cluster.file)) as client,
    ):
        client.wait_for_workers(2)
        for left in (1, 0):
            client.run(_die_when_asked, workers=[min(client.nthreads())])
            if left:
                _check_workers(client)
            else:
                with pytest.raises(ClusterError, match="the workers of the Dask cluster were lost"):
                    _check_workers(client)
            while len(client.nthreads()) != left:
                pass


def _die_when_asked() -> None:
    """The next question for its version is this worker's end."""
    import i2am.analysis.dask_tasks

    i2am.analysis.dask_tasks.KERNEL_VERSION = _Mortal()  # type: ignore[assignment]


class _Mortal:
    """Kills whoever sends it."""

    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
