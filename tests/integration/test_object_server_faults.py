"""Commands through an object server that fails in every way for a while, or for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from i2am.storage.locations.open import locate
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from i2am.storage.writing.failures import failures
from tests.flows.conftest import Outcome, i2am, write_run  # noqa: F401 - i2am is a fixture
from tests.integration.test_faults import settings
from tests.object_server import BUCKET, Proxy, Schedule, object_server, objects, proxy
from tests.storage.test_object_faults import FAULTS, first_of_each


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with object_server() as url:
        yield url


@pytest.fixture
def faulty(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    pauses = {
        "init_backoff": timedelta(milliseconds=10),
        "max_backoff": timedelta(milliseconds=50),
        "base": 2,
    }
    retry = {"max_retries": 8, "retry_timeout": timedelta(seconds=20), "backoff": pauses}
    monkeypatch.setattr("i2am.storage.locations.object_store.RETRY", retry)
    monkeypatch.setattr("i2am.storage.locations.object_store.PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("i2am.storage.writing.lease.LEASE_SECONDS", 2.0)
    with proxy(server, Schedule(slow_seconds=0.02)) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        yield made


def every_fault() -> Any:
    """Each first request fails, by turns in every way."""
    count = iter(range(10**9))
    choices = {fault: first_of_each(fault) for fault in FAULTS}

    def choose(method: str, path: str, nth: int) -> Any:
        return choices[FAULTS[next(count) % len(FAULTS)]](method, path, nth)

    return choose


def values(run: str | Path) -> dict[tuple[str, str], Any]:
    opened = open_run(run)
    return {
        (layer, sample): opened.read(layer, sample).logits()
        for layer in opened.layers
        for sample in opened.samples
    }


def test_capture_goes_on_through_faults_and_after_a_server_that_was_given_up(
    i2am: Callable[..., Outcome],  # noqa: F811
    faulty: Proxy,
    server: str,
    tmp_path: Path,
) -> None:
    calm, few = tmp_path / "calm.zarr", {"scenes": {"count": 2}}
    assert i2am("capture", settings(tmp_path, calm, samples=few), "--direct", "--quiet").status == 0
    url = f"s3://{BUCKET}/study.zarr"
    command = ("capture", settings(tmp_path, url, samples=few), "--direct", "--quiet", "--keep-going")  # type: ignore[arg-type]

    def commits() -> dict[str, bytes]:
        return objects(server, "study.zarr/commits/")

    puts: set[str] = set()
    first = every_fault()

    def leave(method: str, path: str, nth: int) -> Any:
        """Fail now and then, and for good from the second sample's commit on."""
        if method == "PUT" and "/commits/" in path:
            puts.add(path)
        return "503" if len(puts) > 1 else first(method, path, nth)

    faulty.schedule.choose = leave
    i2am(*command).refused("does not answer as it should; .*run again: what is committed is kept")
    kept = commits()
    assert len(kept) == 1
    faulty.schedule.choose = every_fault()
    done = i2am(*command)
    assert done.status == 0, done.err
    faulty.schedule.choose = lambda *request: None
    assert failures(url) == {}
    assert {key: commits()[key] for key in kept} == kept
    report = verify(url)
    assert (report.problems, report.notes, report.samples) == ((), (), 2)
    assert all(faulty.schedule.done[fault] > 0 for fault in FAULTS), faulty.schedule.done
    wanted, found = values(calm), values(url)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=str(name))


def test_verify_and_analyze_through_faults(
    i2am: Callable[..., Outcome],  # noqa: F811
    faulty: Proxy,
    server: str,
    tmp_path: Path,
) -> None:
    local = write_run(tmp_path / "run.zarr", ("a",))
    url = f"s3://{BUCKET}/faults.zarr"
    for file in sorted(local.rglob("*")):
        if file.is_file():
            locate(url).write(file.relative_to(local).as_posix(), file.read_bytes())
    faulty.schedule.choose = every_fault()
    assert i2am("verify", url, "--quiet").out.startswith(f"{url}: ok; 1 sample, ")
    done = i2am("analyze", url, "--out", tmp_path / "s3", "--direct", "--quiet")
    assert done.status == 0, done.err
    assert all(faulty.schedule.done[fault] > 0 for fault in FAULTS), faulty.schedule.done
    assert i2am("analyze", local, "--out", tmp_path / "disk", "--direct", "--quiet").status == 0
    for table in sorted((tmp_path / "disk/tables").iterdir()):
        assert pl.read_parquet(table).equals(pl.read_parquet(tmp_path / "s3/tables" / table.name)), table
    beside = {name for name in objects(server, "faults.marginals.zarr/") if "/c/" in name}
    disk = (tmp_path / "run.marginals.zarr").rglob("*")
    assert len(beside) == sum(file.is_file() and "c" in file.parts for file in disk)


def test_a_server_that_is_gone_is_one_line_for_every_command(
    i2am: Callable[..., Outcome],  # noqa: F811
    faulty: Proxy,
    tmp_path: Path,
) -> None:
    url = f"s3://{BUCKET}/faults.zarr"
    faulty.schedule.choose = lambda *request: "500"
    for command in (
        ("verify", url),
        ("inspect", url),
        ("imacs", url),
        ("maps", url, "--out", tmp_path / "F.npz"),
        ("analyze", url, "--out", tmp_path / "out", "--direct"),
        ("prune", url, "--out", tmp_path / "p.zarr"),
        ("export", url, "--out", tmp_path / "e.zarr", "--marginals"),
    ):
        i2am(*command).refused("does not answer as it should")
    assert list(tmp_path.iterdir()) == []
