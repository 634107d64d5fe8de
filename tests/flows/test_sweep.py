"""Sweeps without a server: capture processes, lost ones replaced, GPUs used one after the other."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2am.flows.sweep.gpu_lock import gpu_lock
from i2am.flows.sweep.sweep import cut_shards
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from i2am.storage.writing.failures import clear_failures, failures, record_failure
from tests.flows.conftest import Outcome, spawn
from tests.flows.prefect_api import alive, descendants, wait_for
from tests.flows.sweeps import COUNT, WORKER, Sweep, sweep_config, sweeps

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


@pytest.fixture
def many(config: Callable[..., Path]) -> Callable[..., Path]:
    return lambda **changes: sweep_config(config, **changes)


@pytest.fixture
def start() -> Iterator[Callable[..., Sweep]]:
    with sweeps() as starter:
        yield starter


def arrays(run_path: Path) -> dict[tuple[str, str], np.ndarray[Any, Any]]:
    run = open_run(run_path)
    return {
        (layer, sample): np.asarray(run.read(layer, sample).logits())
        for layer in run.layers
        for sample in run.samples
    }


def same(left: Path, right: Path) -> None:
    a, b = arrays(left), arrays(right)
    assert set(a) == set(b)
    for key, logits in a.items():  # another process may round otherwise
        np.testing.assert_allclose(logits, b[key], rtol=1e-4, atol=1e-5, err_msg=str(key))


@given(
    count=st.integers(1, 40),
    size=st.integers(1, 9),
    batch=st.integers(1, 5),
    gone=st.sets(st.integers(0, 39)),
)
def test_shards_cover_what_is_missing_and_share_no_batch(
    count: int, size: int, batch: int, gone: set[int]
) -> None:
    declared = [f"s{i}" for i in range(count)]
    ids = [id for i, id in enumerate(declared) if i not in gone]
    cut = cut_shards(ids, declared, size, batch)
    assert [id for shard in cut for id in shard] == ids
    batches = [{declared.index(id) // batch for id in shard} for shard in cut]
    assert all(a.isdisjoint(b) for i, a in enumerate(batches) for b in batches[:i])


def test_a_sweep_equals_a_capture(
    many: Callable[..., Path], i2am: Callable[..., Outcome], tmp_path: Path
) -> None:
    swept = spawn("sweep", many(), "--json")
    assert swept.status == 0, swept.err
    assert swept.json["committed"] == swept.json["captured"] == COUNT
    rows = swept.json["shards"]
    assert [(row["shard"], row["samples"], row["captured"], row["attempts"]) for row in rows] == [
        (number, 2, 2, 1) for number in range(3)
    ]
    assert sum(row["bytes"] for row in rows) == swept.json["bytes"]
    plain = i2am("capture", many(), "--out", tmp_path / "plain.zarr", "--direct")
    assert plain.status == 0, plain.err
    same(tmp_path / "tiny.zarr", tmp_path / "plain.zarr")
    assert verify(tmp_path / "tiny.zarr").ok
    again = i2am("sweep", many(), "--json")  # nothing to do: no process is started
    assert (again.status, again.json["captured"], again.json["shards"]) == (0, 0, [])


def test_failures_are_recorded_and_tried_again(
    many: Callable[..., Path], i2am: Callable[..., Outcome], tmp_path: Path
) -> None:
    broken = {"broken": ["scene-0000003"], "mended": str(tmp_path / "mended")}
    swept = spawn("sweep", many(arguments=broken), "--json")
    assert swept.status == 1, swept.err
    assert swept.json["committed"] == COUNT - 1
    assert "failed: scene-0000003" in swept.err
    (entry,) = swept.json["failed"]
    assert "this scene cannot be painted" in entry["error"]
    run = tmp_path / "tiny.zarr"
    assert verify(run).ok
    passed = i2am("capture", many(arguments=broken), "--json", "--direct")
    assert (passed.status, passed.json["captured"]) == (1, 0)
    (tmp_path / "mended").touch()
    taken = i2am("capture", many(arguments=broken), "--json", "--direct", "--retry-failed")
    assert (taken.status, taken.json["captured"]) == (0, 1), taken.err
    assert failures(run) == {}
    assert not any(run.glob("failures/*"))


def test_what_the_user_must_correct_ends_the_sweep_at_once(many: Callable[..., Path], tmp_path: Path) -> None:
    """One shard is tried, not all six, and one line says why."""
    sweep = {"workers": 1, "shard": 1, "retries": 5, "backoff": 60}
    started = time.monotonic()
    spawn("sweep", many(adapter="nope", sweep=sweep), "--quiet").refused("unknown adapter 'nope'")
    assert time.monotonic() - started < 60
    assert not (tmp_path / "tiny.zarr").exists()


def test_a_shard_is_given_up_after_its_retries(
    many: Callable[..., Path], start: Callable[..., Sweep]
) -> None:
    sweep = start(many(arguments={"delay": 0.5}, sweep={"workers": 1, "shard": 3, "retries": 0}))
    sweep.until(1)
    for worker in sweep.children(WORKER):
        os.kill(worker, signal.SIGKILL)
    status, out, err = sweep.end()
    assert status == 1
    (line,) = json.loads(out)["lost"]
    assert "the capture process ended with status -9" in line
    assert f"given up: {line}" in err
    assert 1 <= json.loads(out)["committed"] - 3 < 3  # the other shard is whole


def test_a_killed_process_is_replaced_and_nothing_is_lost(
    many: Callable[..., Path], start: Callable[..., Sweep], i2am: Callable[..., Outcome], tmp_path: Path
) -> None:
    file = many(arguments={"delay": 0.2}, sweep={"workers": 1, "shard": 3, "retries": 5})
    sweep = start(file)
    sweep.until(1)
    (worker,) = wait_for(lambda: sweep.children(WORKER))
    os.kill(worker, signal.SIGKILL)
    status, out, err = sweep.end()
    assert status == 0, err
    assert sum(row["attempts"] for row in json.loads(out)["shards"]) >= 3
    sweep.valid()
    plain = i2am("capture", file, "--out", tmp_path / "plain.zarr", "--direct")
    assert plain.status == 0, plain.err
    same(sweep.run, tmp_path / "plain.zarr")


@pytest.mark.slow
def test_two_sweeps_use_a_gpu_one_after_the_other(
    many: Callable[..., Path], start: Callable[..., Sweep], tmp_path: Path
) -> None:
    file = many(arguments={"delay": 0.3}, sweep={"gpus": ["test-shared"]})
    first = start(file, "--out", tmp_path / "first.zarr")
    first.until(1)
    second = start(file, "--out", tmp_path / "second.zarr")
    for sweep in (first, second):
        status, out, err = sweep.end()
        assert status == 0, err
        assert json.loads(out)["captured"] == COUNT
        sweep.valid()
    assert err.count("waiting for GPU test-shared: another process holds") == 1
    times = [[path.stat().st_mtime for path in sweep.commits()] for sweep in (first, second)]
    assert max(times[0]) < min(times[1])


def test_a_gpu_that_is_taken_does_not_hold_up_the_others(
    many: Callable[..., Path], start: Callable[..., Sweep]
) -> None:
    stop = threading.Event()
    with gpu_lock("test-taken", stop, lambda line: None) as lock:
        assert lock is not None
        assert lock.path.stat().st_mode & 0o777 == 0o666, "other users must be able to wait for it"
        sweep = start(many(sweep={"gpus": ["test-taken", "test-free"], "shard": 1}))
        status, out, err = sweep.end()
    assert status == 0, err
    sweep.valid()
    assert all(" GPU test-free " in row["where"] for row in json.loads(out)["shards"])


def test_a_killed_sweep_frees_its_gpu_and_leaves_nothing_behind(
    many: Callable[..., Path], start: Callable[..., Sweep]
) -> None:
    file = many(arguments={"delay": 0.5}, sweep={"gpus": ["test-killed"]})
    first = start(file)
    first.until(2)
    left = descendants(first.process.pid)
    first.process.kill()
    first.end()
    wait_for(lambda: not alive(left), 30)
    second = start(file)
    status, out, err = second.end()
    assert status == 0, err
    assert 0 < json.loads(out)["captured"] < COUNT
    second.valid()


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
def test_an_interrupted_sweep_leaves_a_valid_run(
    many: Callable[..., Path], start: Callable[..., Sweep], number: signal.Signals
) -> None:
    sweep = start(many(arguments={"delay": 0.5}))
    sweep.until(1)
    left = descendants(sweep.process.pid)
    assert sum(WORKER in command for command in left.values()) == 2
    sweep.process.send_signal(number)
    status, _, err = sweep.end()
    assert status == 130, err
    assert err.splitlines()[-1] == "i2am: interrupted"
    assert not alive(left)
    there = len(open_run(sweep.run).samples)
    assert 0 < there < COUNT
    sweep.valid(there)
    again = start(many(arguments={"delay": 0.5}, sweep={"workers": 1}))
    status, out, err = again.end()
    assert status == 0, err
    assert json.loads(out)["committed"] == COUNT
    again.valid()


def test_records_of_failures(many: Callable[..., Path], i2am: Callable[..., Outcome], tmp_path: Path) -> None:
    run = tmp_path / "tiny.zarr"
    assert i2am("capture", many(), "--direct").status == 0
    assert failures(tmp_path / "nothing.zarr") == {}
    record_failure(run, {"scene-0000001": "why", "other": "not committed"})
    assert {each.error for each in failures(run).values()} == {"not committed"}  # the other one is there
    (run / "failures" / "other.json").write_text("{}")
    assert failures(run) == {}
    report = verify(run)
    assert report.ok
    assert len(report.notes) == 2
    clear_failures(run, ["scene-0000001", "other", "never"])
    assert not any(run.glob("failures/*"))
