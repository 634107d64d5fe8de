"""Sweeps: shards over capture processes, failures set aside and taken again, lost processes replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2am.flows.prefect.server import temporary_server
from i2am.flows.sweep.worker_pool import shards
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from i2am.storage.writing.failures import clear_failures, failures, record_failure
from tests.flows.conftest import ROOT, Outcome, spawn

pytestmark = pytest.mark.timeout(400)
COUNT = 6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with temporary_server(tmp_path_factory.mktemp("prefect")) as env:
        yield env


@pytest.fixture
def many(config: Callable[..., Path]) -> Callable[..., Path]:
    """The tiny capture with COUNT samples in shards of 2."""

    def write(**changes: Any) -> Path:
        arguments = changes.pop("arguments", {})
        pipeline = {"kind": "factory", "function": "tests.flows.tiny:build", "arguments": arguments}
        sweep = {"workers": 2, "shard": 2, "backoff": 0.1}
        settings = {"pipeline": pipeline, "samples": {"scenes": {"count": COUNT}}, "sweep": sweep}
        return config(**(settings | changes))

    return write


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
    assert all(np.array_equal(a[key], b[key]) for key in a)


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
    cut = shards(ids, declared, size, batch)
    assert [id for shard in cut for id in shard] == ids
    batches = [{declared.index(id) // batch for id in shard} for shard in cut]
    assert all(a.isdisjoint(b) for i, a in enumerate(batches) for b in batches[:i])


def test_a_sweep_equals_a_capture(
    server: dict[str, str], many: Callable[..., Path], i2am: Callable[..., Outcome], tmp_path: Path
) -> None:
    swept = spawn("sweep", many(), "--json", env=server)
    assert swept.status == 0, swept.err
    assert swept.json["committed"] == swept.json["captured"] == COUNT
    plain = spawn("capture", many(), "--out", tmp_path / "plain.zarr", "--direct")
    assert plain.status == 0, plain.err
    same(tmp_path / "tiny.zarr", tmp_path / "plain.zarr")
    assert verify(tmp_path / "tiny.zarr").ok
    again = spawn("sweep", many(), "--json", env=server)
    assert (again.status, again.json["captured"]) == (0, 0)


def test_failures_are_set_aside_and_taken_again(
    server: dict[str, str], many: Callable[..., Path], tmp_path: Path
) -> None:
    broken = {"broken": ["scene-0000003"], "mended": str(tmp_path / "mended")}
    swept = spawn("sweep", many(arguments=broken), "--json", env=server)
    assert swept.status == 1, swept.err
    assert swept.json["committed"] == COUNT - 1
    assert "set aside: scene-0000003" in swept.err
    (entry,) = swept.json["failed"]
    assert "this scene cannot be painted" in entry["error"]
    run = tmp_path / "tiny.zarr"
    assert verify(run).ok
    passed = spawn("capture", many(arguments=broken), "--json", "--direct")
    assert (passed.status, passed.json["captured"]) == (1, 0)
    (tmp_path / "mended").touch()
    taken = spawn("capture", many(arguments=broken), "--json", "--direct", "--retry-failed")
    assert (taken.status, taken.json["captured"]) == (0, 1), taken.err
    assert failures(run) == {}
    assert not any(run.glob("failures/*"))


def test_what_the_user_must_mend_ends_the_sweep_at_once(many: Callable[..., Path], tmp_path: Path) -> None:
    """On a temporary server: one shard is tried, not all six, and one line says why."""
    sweep = {"workers": 1, "shard": 1, "retries": 5, "backoff": 60}
    started = time.monotonic()
    refused = spawn("sweep", many(adapter="nope", sweep=sweep), "--quiet", env={"PREFECT_API_URL": ""})
    refused.refused("unknown adapter 'nope'")
    assert time.monotonic() - started < 240
    assert not (tmp_path / "tiny.zarr").exists()


def test_a_killed_process_is_replaced_and_nothing_is_lost(
    server: dict[str, str], many: Callable[..., Path], tmp_path: Path
) -> None:
    sweep = {"workers": 1, "shard": 3, "backoff": 0.1, "retries": 5}
    file = many(arguments={"delay": 0.2}, sweep=sweep)
    parent = subprocess.Popen(
        [sys.executable, "-m", "i2am", "sweep", str(file), "--quiet"],
        cwd=ROOT,
        env={**os.environ, **server, "PYTHONPATH": str(ROOT)},
    )
    killed = 0
    try:
        end = time.monotonic() + 200
        while parent.poll() is None and time.monotonic() < end:
            workers = _children(parent.pid)
            commits = len(list((tmp_path / "tiny.zarr").glob("commits/*.json")))
            if workers and killed < 2 and commits > killed:
                os.kill(workers[0], signal.SIGKILL)
                killed += 1
            time.sleep(0.05)
        assert parent.wait(10) == 0
    finally:
        parent.kill()
    assert killed == 2
    run = tmp_path / "tiny.zarr"
    assert len(open_run(run).samples) == COUNT
    assert verify(run).ok
    assert not (run / ".staging").exists()
    plain = spawn("capture", file, "--out", tmp_path / "plain.zarr", "--direct")
    assert plain.status == 0, plain.err
    same(run, tmp_path / "plain.zarr")


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and b"i2am.flows.sweep.worker_main" in command:
            found.append(int(stat.parent.name))
    return found


def test_notes_of_failures(many: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "tiny.zarr"
    assert spawn("capture", many(), "--direct").status == 0
    assert failures(tmp_path / "nothing.zarr") == {}
    record_failure(run, {"scene-0000001": "why", "other": "not committed"})
    assert {each.error for each in failures(run).values()} == {"not committed"}  # the other one is there
    (run / "failures" / "other.json").write_text("{}")
    assert failures(run) == {}
    report = verify(run)
    assert report.ok
    assert sum("set aside" in note for note in report.notes) == 2
    clear_failures(run, ["scene-0000001", "other", "never"])
    assert not any(run.glob("failures/*"))
