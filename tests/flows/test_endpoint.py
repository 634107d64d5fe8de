"""``--endpoint-url`` before any command, on a server of our own: every command works on ``s3://``."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from i2am.storage.locations.open import locate
from i2am.storage.reading.open import open_run
from tests.flows.conftest import SAMPLES, Outcome, spawn
from tests.object_server import BUCKET, object_server, objects


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with object_server() as url:
        yield url


@pytest.fixture(scope="module")
def stored(endpoint: str, pristine: Path) -> str:
    """The same run on the server, byte for byte."""
    place = locate(f"s3://{BUCKET}/run.zarr", {"endpoint_url": endpoint})
    for file in sorted(pristine.rglob("*")):
        if file.is_file():
            place.write(file.relative_to(pristine).as_posix(), file.read_bytes())
    return place.url


@pytest.fixture
def there(
    i2am: Callable[..., Outcome], endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Run a command in this process with ``--endpoint-url``; the environment is as before afterwards."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the option is stronger

    def run(*words: object) -> Outcome:
        return i2am("--endpoint-url", endpoint, *words)

    return run


def test_a_location_carries_its_endpoint_to_processes_that_have_another(
    endpoint: str, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    sent = pickle.dumps(open_run(stored))
    assert b"testing" not in sent  # credentials stay behind
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert pickle.loads(sent).read("deep", "a").query.shape == (3, 2, 16, 4)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert pickle.loads(sent).image("mask", "b").shape == (16, 16, 1)


def test_reading_commands(there: Callable[..., Outcome], stored: str, pristine: Path, tmp_path: Path) -> None:
    assert there("verify", stored, "--quiet").out.startswith(f"{stored}: ok; 3 samples")
    assert there("inspect", stored, "--json").json["samples"]["committed"] == 3
    assert there("maps", stored, "--level", "head", "--out", tmp_path / "s3.npz").status == 0
    assert there("maps", pristine, "--level", "head", "--out", tmp_path / "disk.npz").status == 0
    with np.load(tmp_path / "s3.npz") as ours, np.load(tmp_path / "disk.npz") as wanted:
        np.testing.assert_array_equal(ours["maps"], wanted["maps"])
    scores = [there("imacs", place, "--json").json["scores"] for place in (stored, pristine)]
    assert scores[0] == scores[1]


def test_analyze_on_worker_processes_keeps_its_marginals_beside_the_run(
    endpoint: str, stored: str, pristine: Path, tmp_path: Path
) -> None:
    command = ("--cluster", "processes", "--workers", 2, "--direct", "--quiet", "--json")
    env = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    done = spawn("--endpoint-url", endpoint, "analyze", stored, "--out", tmp_path / "s3", *command, env=env)
    assert done.status == 0, done.err
    assert done.json["samples"] == list(SAMPLES)
    assert any(
        name.startswith("run.marginals.zarr/deep/r2g/c/") for name in objects(endpoint, "run.marginals")
    )
    assert spawn("analyze", pristine, "--out", tmp_path / "disk", "--direct", "--quiet").status == 0
    for table in sorted((tmp_path / "disk/tables").iterdir()):
        assert pl.read_parquet(table).equals(pl.read_parquet(tmp_path / "s3/tables" / table.name)), table


def test_commands_that_write_runs(there: Callable[..., Outcome], stored: str, endpoint: str) -> None:
    for command, name in (
        (("prune", stored, "--steps", "0"), "pruned"),
        (("export", stored, "--sample", "b"), "one"),
        (("export", stored, "--marginals"), "maps"),
    ):
        out = f"s3://{BUCKET}/{name}.zarr"
        done = there(*command, "--out", out, "--quiet", "--json")
        assert done.status == 0, done.err
        assert there("verify", out, "--quiet").status == 0
        assert f"{name}.zarr/zarr.json" in objects(endpoint, name)
    there("export", stored, "--marginals", "--out", f"s3://{BUCKET}/maps.zarr", "--quiet").refused(
        "already exists"
    )
    assert (
        there("imacs", f"s3://{BUCKET}/maps.zarr", "--json").json["scores"]
        == (there("imacs", stored, "--json").json["scores"])
    )


def test_capture(there: Callable[..., Outcome], config: Callable[..., Path]) -> None:
    out = f"s3://{BUCKET}/captured.zarr"
    done = there("capture", config(out=out), "--direct", "--json", "--quiet")
    assert done.status == 0, done.err
    assert done.json["committed"] == 2
    assert there("verify", out, "--quiet").status == 0


def test_what_is_no_url_is_refused(i2am: Callable[..., Outcome]) -> None:
    before = dict(os.environ)
    for word in ("minio:9000", "ftp://host", "http://", "http:// host", ""):
        i2am("--endpoint-url", word, "verify", "x.zarr").refused("expected http://HOST:PORT or https://HOST")
    assert dict(os.environ) == before
