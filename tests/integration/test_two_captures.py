"""Two captures of one configuration at the same moment: every sample once, both content."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2am.storage.locations.open import locate
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.integration.forks import Forks, forks
from tests.integration.test_durability import arrays
from tests.integration.test_faults import COUNT, check, records, settings
from tests.object_server import BUCKET, object_server, objects


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with object_server() as url:
        yield url


@pytest.fixture(scope="module")
def server(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    folder = tmp_path_factory.mktemp("forks")
    with forks(
        settings(folder, folder / "run.zarr"),
        folder,
        {"AWS_ENDPOINT_URL": endpoint, "TEST_LEASE_SECONDS": "8"},
    ) as made:
        yield made


@pytest.fixture(scope="module")
def whole(server: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray[Any, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    done = server.run("capture", settings(folder, folder / "run.zarr"), "--quiet", "--direct")
    assert done.status == 0, done.err
    return arrays(folder / "run.zarr")


def both(server: Forks, config: Path, there: int = 0) -> None:
    """Start two at once; each must end well, and together they commit each missing sample once."""
    command = ("capture", config, "--direct", "--json")
    outcomes = [each.wait() for each in [server.start(*command), server.start(*command)]]
    assert [outcome.status for outcome in outcomes] == [0, 0], [outcome.err for outcome in outcomes]
    assert all(outcome.json["committed"] == COUNT for outcome in outcomes)
    assert all(outcome.json["failed"] == [] for outcome in outcomes)
    taken = [sample for outcome in outcomes for sample in re.findall(r"capture \d+/\d+: (\S+)", outcome.err)]
    assert len(taken) == len(set(taken)) == COUNT - there, [outcome.err for outcome in outcomes]


@pytest.mark.parametrize("turn", range(3))
def test_on_a_disk_where_no_run_is_yet(
    server: Forks, whole: dict[str, Any], tmp_path: Path, turn: int
) -> None:
    run = tmp_path / "run.zarr"
    both(server, settings(tmp_path, run))
    check(run, whole)


def test_on_a_disk_with_half_a_run(server: Forks, whole: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run.zarr"
    config = settings(tmp_path, run)
    first = server.start("capture", config, "--direct", "--quiet")
    first.until(lambda: records(run) >= 2)
    os.kill(first.pid, 9)
    first.wait()
    kept = {record.name: record.read_bytes() for record in run.glob("commits/*.json")}
    both(server, config, len(kept))
    check(run, whole)
    assert {name: (run / "commits" / name).read_bytes() for name in kept} == kept


@pytest.mark.parametrize("half", [False, True], ids=["none", "half"])
def test_on_an_object_server(
    server: Forks, endpoint: str, whole: dict[str, Any], tmp_path: Path, half: bool
) -> None:
    url = f"s3://{BUCKET}/{'half' if half else 'none'}.zarr"
    config = settings(tmp_path, url)
    place = locate(url, {"endpoint_url": endpoint})
    kept: dict[str, bytes] = {}
    if half:
        first = server.start("capture", config, "--direct", "--quiet")
        first.until(lambda: len(place.names("commits")) >= 2)
        os.kill(first.pid, 9)
        first.wait()
        kept = {name: place.read(f"commits/{name}") for name in place.names("commits")}
    both(server, config, len(kept))
    report = verify(url, {"endpoint_url": endpoint})
    assert (report.problems, report.samples) == ((), COUNT)
    assert {name: place.read(f"commits/{name}") for name in kept} == kept
    run = open_run(url, {"endpoint_url": endpoint})
    copy = tmp_path / "copy.zarr"
    for key, data in objects(endpoint, url.removeprefix(f"s3://{BUCKET}/")).items():
        file = copy / key.partition("/")[2]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    named = {path for sample in run.samples for path in run.record(sample)["files"]}
    placed = {file.relative_to(copy).as_posix() for file in copy.rglob("c.*") if file.is_file()}
    assert placed == named
    found = arrays(copy)
    assert found.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    for record in copy.glob("commits/*.json"):
        assert json.loads(record.read_text())["run_id"] == run.run_id
