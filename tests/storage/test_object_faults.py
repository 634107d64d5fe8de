"""An object server that refuses, drops connections, cuts answers short, or stores and does not say so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import i2am
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.marginals.memory_cache import shared_cache
from i2am.storage.locations.base import Location
from i2am.storage.locations.open import locate
from tests.object_server import BUCKET, Fault, Proxy, Schedule, object_server, objects, proxy
from tests.storage.synthetic import IMAGES, LAYERS, TIMESTEPS, check_values, fill, write_run

FAULTS = [fault for fault in get_args(Fault) if fault not in ("403", "404")]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with object_server() as url:
        yield url


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same retries, with shorter pauses."""
    pauses = {
        "init_backoff": timedelta(milliseconds=10),
        "max_backoff": timedelta(milliseconds=200),
        "base": 2,
    }
    retry = {"max_retries": 8, "retry_timeout": timedelta(seconds=20), "backoff": pauses}
    monkeypatch.setattr("i2am.storage.locations.object_store.RETRY", retry)
    monkeypatch.setattr("i2am.storage.locations.object_store.PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("i2am.storage.locations.object_store.ONE_REQUEST", 8 << 20)


@pytest.fixture
def faulty(server: str) -> Iterator[Proxy]:
    with proxy(server, Schedule(slow_seconds=0.1)) as made:
        yield made


def place(faulty: Proxy, name: str) -> Location:
    return locate(f"s3://{BUCKET}/{name}.zarr", {"endpoint_url": faulty.endpoint})


def first_of_each(fault: Fault) -> Any:
    """The first request for each object and listing fails, whatever its parameters."""
    seen: set[str] = set()

    def choose(method: str, path: str, nth: int) -> Fault | None:
        key = f"{method} {path.split('?')[0] if 'list-type' not in path else path}"
        new = key not in seen
        seen.add(key)
        return fault if new else None

    return choose


@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_comes_out_as_if_nothing_had_been(
    faulty: Proxy, fault: Fault, tmp_path: Path, server: str
) -> None:
    name = fault.replace(" ", "-")
    there = place(faulty, name)
    faulty.schedule.choose = first_of_each(fault)
    big = np.random.default_rng(0).bytes(11 << 20)  # goes up in three parts
    (tmp_path / "big").write_bytes(big)
    there.write("a/x", b"0123456789" * 100)
    assert there.write_new("a/y", b"mine") is True
    assert there.write_new("a/y", b"other") is False
    there.upload("a/big", tmp_path / "big")
    assert there.read("a/x") == b"0123456789" * 100
    assert there.read_ranges("a/x", [(3, 7)], 1000) == [b"3456"]
    assert b"".join(there.stream("a/big")) == big
    assert there.size("a/x") == 1000
    assert there.size("a/none") is None
    assert there.names("a") == ["big", "x", "y"]
    assert sorted(there.files()) == [("a/big", len(big)), ("a/x", 1000), ("a/y", 4)]
    there.remove("a/x")
    assert {key: len(data) for key, data in objects(server, f"{name}.zarr/").items()} == {
        f"{name}.zarr/a/big": len(big),
        f"{name}.zarr/a/y": 4,
    }
    assert faulty.schedule.done[fault] >= 8


def test_parts_that_were_joined_unsaid_go_up_again(faulty: Proxy, tmp_path: Path, server: str) -> None:
    """The answer to the last request of a large upload is lost, and the server has forgotten the upload."""
    joined: set[str] = set()

    def choose(method: str, path: str, nth: int) -> Fault | None:
        if method != "POST" or "uploadId=" not in path:
            return None
        if not joined:
            joined.add(path)
            return "stored 500"
        return "404" if path in joined else None

    faulty.schedule.choose = choose
    big = np.random.default_rng(1).bytes(11 << 20)
    (tmp_path / "big").write_bytes(big)
    place(faulty, "joined").upload("big", tmp_path / "big")
    assert faulty.schedule.done == {"stored 500": 1, "404": 1}
    assert objects(server, "joined.zarr/") == {"joined.zarr/big": big}


@pytest.mark.parametrize("fault", ["stored 500", "stored reset"])
def test_of_many_who_create_an_object_one_does_though_none_is_told(faulty: Proxy, fault: Fault) -> None:
    faulty.schedule.choose = lambda method, path, nth: fault if method == "PUT" and nth < 8 else None
    name = f"race-{fault.replace(' ', '-')}"
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda i: place(faulty, name).write_new("one", bytes([i])), range(8)))
    assert faulty.schedule.done[fault] == 8
    assert made.count(True) == 1
    assert place(faulty, name).read("one") == bytes([made.index(True)])


def test_a_whole_run_through_faults_of_every_kind(faulty: Proxy, server: str, tmp_path: Path) -> None:
    """Written, verified and analysed through a server whose first answer is always wrong."""
    count = iter(range(10**9))
    choices = {fault: first_of_each(fault) for fault in FAULTS}

    def choose(method: str, path: str, nth: int) -> Fault | None:
        fault = FAULTS[next(count) % len(FAULTS)]
        return choices[fault](method, path, nth)

    faulty.schedule.choose = choose
    faulty.schedule.slow_seconds = 0.02
    options = {"endpoint_url": faulty.endpoint}
    url = f"s3://{BUCKET}/whole.zarr"
    with i2am.create_run(
        url, LAYERS, TIMESTEPS, ["a", "b"], image_shapes=IMAGES, storage_options=options
    ) as writer:
        for sample in writer.missing:
            with writer.sample(sample) as sink:
                fill(sink, LAYERS, range(len(TIMESTEPS)), IMAGES)
    run = i2am.open_run(url, options)
    check_values(run)
    report = i2am.verify(url, options)
    assert (report.ok, report.notes, report.samples) == (True, (), 2)
    maps = attribution_maps(run, "r2g", "layer", storage_options=options).to_numpy()
    assert all(faulty.schedule.done[fault] > 5 for fault in FAULTS), faulty.schedule.done
    names = {key.removeprefix("whole.zarr/") for key in objects(server, "whole.zarr/")}
    local = write_run(tmp_path / "run.zarr", ["a", "b"])
    assert names == {
        file.relative_to(tmp_path / "run.zarr").as_posix()
        for file in (tmp_path / "run.zarr").rglob("*")
        if file.is_file()
    }
    shared_cache.clear()
    np.testing.assert_array_equal(maps, attribution_maps(local, "r2g", "layer").to_numpy())


def test_a_server_that_is_away_for_a_while_is_waited_for(
    faulty: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = {"init_backoff": timedelta(milliseconds=20), "max_backoff": timedelta(seconds=0.3), "base": 2}
    patient = {"max_retries": 60, "retry_timeout": timedelta(seconds=60), "backoff": pauses}
    monkeypatch.setattr("i2am.storage.locations.object_store.RETRY", patient)
    options = {"endpoint_url": faulty.endpoint}
    url = f"s3://{BUCKET}/away.zarr"
    back = []

    def leave() -> None:
        faulty.stop()
        time.sleep(1.0)
        faulty.start()
        back.append(True)

    with i2am.create_run(url, LAYERS, TIMESTEPS, ["a", "b"], storage_options=options) as writer:
        for sample in writer.missing:
            with writer.sample(sample) as sink:
                fill(sink, LAYERS, range(len(TIMESTEPS)))
                gone = threading.Thread(target=leave)
                gone.start()
                time.sleep(0.1)  # the commit meets a closed door
            gone.join()
    assert len(back) == 2
    check_values(i2am.open_run(url, options))
    assert i2am.verify(url, options).ok


def test_a_server_that_never_recovers_is_given_up_in_one_line(
    faulty: Proxy, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"max_retries": 8, "retry_timeout": timedelta(seconds=20)}
    options = {"endpoint_url": faulty.endpoint, "retry_config": quick}
    url = f"s3://{BUCKET}/gone.zarr"
    with i2am.create_run(url, LAYERS, TIMESTEPS, ["a", "b"], storage_options=options) as writer:
        with writer.sample("a") as sink:
            fill(sink, LAYERS, range(len(TIMESTEPS)))
        before = objects(server, "gone.zarr/")
        faulty.schedule.asked.clear()
        refused = pytest.raises(i2am.StoreUnavailable, match=r"does not answer as it should; .*run again")
        with refused as caught, writer.sample("b") as sink:
            fill(sink, LAYERS, range(len(TIMESTEPS)))
            faulty.schedule.choose = lambda method, path, nth: "503"
        assert len(str(caught.value).splitlines()) == 1
        assert sum(faulty.schedule.asked.values()) <= 4 * 9  # a few requests, each tried nine times at most
        faulty.schedule.choose = lambda method, path, nth: None
    left = objects(server, "gone.zarr/").keys() - before.keys()
    assert left == {"gone.zarr/leases/b.json"}, "it tells the next one to clear up"
    monkeypatch.setattr("i2am.storage.writing.lease.LEASE_SECONDS", 0)
    i2am.resume_run(url, storage_options=options).close()  # sees the lease, and that it does not change
    with i2am.resume_run(url, storage_options=options) as writer:
        assert writer.missing == ("b",)
        with writer.sample("b") as sink:
            fill(sink, LAYERS, range(len(TIMESTEPS)))
    check_values(i2am.open_run(url, options))
    assert i2am.verify(url, options).ok
