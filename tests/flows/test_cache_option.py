"""``--cache DIR``: where marginals are kept that cannot, or shall not, lie beside their run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import i2am.analysis.marginals.store
from i2am.analysis.marginals.memory_cache import shared_cache
from i2am.analysis.marginals.quantities import compute_marginals
from i2am.analysis.marginals.store import marginals_path
from i2am.analysis.study.export_run import export
from i2am.storage.reading.open import open_run
from i2am.storage.writing.amend import amend
from tests.flows.conftest import Outcome, spawn, write_run
from tests.object_server import BUCKET, Schedule, object_server, objects, proxy

Command = Callable[..., Outcome]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The samples of which a layer was computed rather than read; nothing is in memory at first."""
    done: list[str] = []

    def spy(run: Any, layer: Any, sample: str) -> Any:
        done.append(sample)
        return compute_marginals(run, layer, sample)

    monkeypatch.setattr(i2am.analysis.marginals.store, "compute_marginals", spy)
    shared_cache.clear()
    return done


def stores(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


@pytest.mark.parametrize("asking", ["maps", "imacs", "analyze", "compare"])
def test_every_reading_command_keeps_and_finds_marginals_there(
    asking: str, run: Path, tmp_path: Path, i2am: Command, computed: list[str]
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other.zarr"))
    cache = tmp_path / "some" / "cache"
    words = {
        "maps": ["--out", tmp_path / "m.npz", "--overwrite"],
        "imacs": [],
        "analyze": ["--out", tmp_path / "study", "--direct", "--again"],
        "compare": [other, "--out", tmp_path / "c"],
    }[asking]
    for count in (6, 0):  # three samples, two layers; the copy is the same run
        computed.clear()
        shared_cache.clear()
        done = i2am(asking, run, *words, "--cache", cache)
        assert done.status == 0, done.err
        assert len(computed) == count
    assert stores(cache) == {f"{open_run(run).run_id}.marginals.zarr"}
    assert not list(tmp_path.glob("*.marginals.zarr"))
    i2am(asking, run, *words, "--cache", "").refused("--cache|cache: ")


def test_a_run_in_a_read_only_folder(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ro"
    folder.mkdir()
    shutil.move(run, folder / "run.zarr")
    cache, out = tmp_path / "cache", tmp_path / "m.npz"
    for path in (*folder.rglob("*"), folder):
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        done = spawn("maps", folder / "run.zarr", "--out", out, "--cache", cache, mortal=True)
        assert done.status == 0, done.err
        assert stores(cache) == {f"{open_run(folder / 'run.zarr').run_id}.marginals.zarr"}
        beside = spawn("imacs", folder / "run.zarr", "--cache", folder / "cache", mortal=True)
        beside.refused("cannot be written; .*; name another place with store= or --cache")
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)


def test_a_run_on_a_read_only_object_store(
    tmp_path: Path, i2am: Command, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(method: str, path: str, nth: int) -> Any:
        return None if method in ("GET", "HEAD") else "403"

    with object_server() as url, proxy(url, Schedule(forbid)) as read_only:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        place = f"s3://{BUCKET}/read-only/run.zarr"  # other tests of this process use the bucket too
        write_run(place)  # type: ignore[arg-type]
        before = objects(url, "read-only")
        monkeypatch.setenv("AWS_ENDPOINT_URL", read_only.endpoint)
        for cache, count in (
            ((), 6),
            ((), 6),
            (("--cache", tmp_path / "cache"), 6),
            (("--cache", tmp_path / "cache"), 0),
        ):
            computed.clear()
            shared_cache.clear()
            done = i2am("maps", place, "--out", tmp_path / "m.npz", "--overwrite", *cache)
            assert done.status == 0, done.err
            assert len(computed) == count
        i2am("imacs", place, "--cache", f"s3://{BUCKET}/read-only/cache").refused("cannot be written")
        assert objects(url, "read-only") == before


def test_what_changed_is_computed_anew(run: Path, tmp_path: Path, i2am: Command, computed: list[str]) -> None:
    """The same folder serves a run, another at its path, and the first with another mask."""
    cache, out = tmp_path / "cache", tmp_path / "m.npz"

    def ask(sample: str) -> np.ndarray[Any, Any]:
        shared_cache.clear()
        computed.clear()
        words = ("--at", "mask", "--direction", "g2r", "--overwrite")
        done = i2am("maps", run, "--out", out, "--sample", sample, *words, "--cache", cache)
        assert done.status == 0, done.err
        with np.load(out) as found:
            return next(values for name, values in found.items() if values.ndim >= 3)

    first = ask("a")
    assert len(computed) == 2
    mask = open_run(run).image("mask", "a")
    amend(run, "a", {"mask": 255 - mask})
    amended = ask("a")
    assert computed == ["a", "a"]
    assert not np.allclose(first, amended)
    amend(run, "a", {"mask": mask})
    np.testing.assert_array_equal(ask("a"), first)
    ask("b")
    assert computed == ["b", "b"]
    shutil.rmtree(run)
    write_run(run)  # another run with the same content
    np.testing.assert_array_equal(ask("a"), first)
    assert computed == ["a", "a"]
    assert len(stores(cache)) == 2


def test_a_run_without_its_attention_has_its_marginals_beside_it(
    run: Path, tmp_path: Path, i2am: Command
) -> None:
    export(run, tmp_path / "small.zarr", marginals=True)
    asked = ("maps", tmp_path / "small.zarr", "--out", tmp_path / "m.npz", "--cache", tmp_path / "cache")
    done = i2am(*asked)
    assert done.status == 0, done.err
    assert Path(marginals_path(str(tmp_path / "small.zarr"))).is_dir()
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_a_cache_is_refused(run: Path, tmp_path: Path, i2am: Command) -> None:
    (tmp_path / "file").write_text("mine")
    i2am("imacs", run, "--cache", tmp_path / "file").refused("")
    run_id = open_run(run).run_id
    (tmp_path / "cache" / f"{run_id}.marginals.zarr").mkdir(parents=True)
    (tmp_path / "cache" / f"{run_id}.marginals.zarr" / "notes.txt").write_text("mine")
    i2am("imacs", run, "--cache", tmp_path / "cache").refused("holds something else; .* --cache")
    i2am("imacs", run, "--cache", "nothing://x").refused("nothing")
