"""What a full disk, a store that turns read-only, a clock that jumps and a rival may do to a run: nothing.

Every fault has its real cause. After it the same command completes the run, and its arrays are those of a run
that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2am.flows.config.load_yaml import load_capture
from i2am.flows.datasets.open import open_samples
from i2am.flows.sweep.worker_process import WorkerProcess
from i2am.storage.errors import InputError
from i2am.storage.tools.verify import verify
from i2am.storage.writing.failures import failures
from tests.flows.conftest import Outcome, i2am, write_run  # noqa: F401 - i2am is a fixture
from tests.integration.forks import Forks, forks
from tests.integration.test_durability import arrays

COUNT = 6
SETTINGS = {
    "pipeline": {"kind": "factory", "function": "tests.flows.tiny:build", "arguments": {"delay": 0.05}},
    "samples": {"scenes": {"count": COUNT}},
    "call": {"num_inference_steps": 3},
}


def settings(folder: Path, out: Path, **changes: Any) -> Path:
    file = folder / "capture.yaml"
    file.write_text(json.dumps({**SETTINGS, "out": str(out), **changes}))
    return file


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    folder = tmp_path_factory.mktemp("forks")
    with forks(settings(folder, folder / "run.zarr"), folder) as made:
        yield made


@pytest.fixture(scope="module")
def whole(server: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of the run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    done = server.run("capture", settings(folder, folder / "run.zarr"), "--quiet", "--direct")
    assert done.status == 0, done.err
    return arrays(folder / "run.zarr")


def check(run: Path, whole: dict[str, np.ndarray[Any, Any]]) -> None:
    """Every sample is there once, equal to the undisturbed run's, and nothing else is left."""
    report = verify(run)
    assert (report.problems, report.notes, report.samples) == ((), (), COUNT)
    assert sorted(path.name for path in run.parent.iterdir() if path.name.startswith(".")) == []
    assert not (run / ".staging").exists()
    found = arrays(run)
    assert found.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def committed(run: Path) -> dict[str, bytes]:
    """Commit records, and every file that they name."""
    found = {}
    for record in run.glob("commits/*.json"):
        for name in (*json.loads(record.read_text())["files"], f"commits/{record.name}"):
            found[name] = (run / name).read_bytes()
    return found


def records(run: Path) -> int:
    return len(list(run.glob("commits/*.json")))


@contextmanager
def disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of its own, which must be small."""
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"mounting a small disk is not allowed here: {made.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def fill_up(place: Path, leave: int = 0) -> Path:
    """Take all space of a disk but some bytes."""
    filler = place / "filler"
    free = os.statvfs(place)
    with filler.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, max(free.f_bavail * free.f_bsize - leave, 1))
    return filler


@pytest.mark.parametrize("options", [(), ("--keep-going",)], ids=["plain", "keep going"])
def test_a_disk_that_fills_during_capture(
    server: Forks, whole: dict[str, Any], tmp_path: Path, options: tuple[str, ...]
) -> None:
    with disk(tmp_path / "disk", "32m") as place:
        run = place / "run.zarr"
        command = ("capture", settings(tmp_path, run), "--direct", "--quiet", *options)
        capture = server.start(*command)
        capture.until(lambda: records(run) >= 2)
        filler = fill_up(place)
        capture.wait().refused(
            "no space left for .*free some space and run again: committed samples are kept"
        )
        before = committed(run)
        report = verify(run)
        assert report.ok, report.problems
        assert 2 <= report.samples < COUNT
        assert failures(run) == {}
        server.run(*command).refused(
            "does not fit its disk; .*free some space"
        )  # still full: refused before anything is generated
        assert committed(run) == before
        filler.unlink()
        done = server.run(*command)
        assert done.status == 0, done.err
        after = committed(run)
        assert {name: after[name] for name in before} == before
        check(run, whole)


def test_a_disk_that_fills_during_a_shard_of_a_sweep(whole: dict[str, Any], tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "32m") as place:
        run = place / "run.zarr"
        config = load_capture(settings(tmp_path, run))
        ids = open_samples(config).ids
        worker = WorkerProcess(config)
        filler = None
        with pytest.raises(InputError, match="no space left"):
            for _ in worker.capture(ids):
                filler = filler or fill_up(place)
        assert filler is not None
        assert failures(run) == {}
        kept = committed(run)
        filler.unlink()
        try:
            captured = list(worker.capture(ids))
        finally:
            worker.close()
        assert len(captured) == COUNT - sum(name.startswith("commits/") for name in kept)
        check(run, whole)


def test_a_disk_that_fills_during_analysis(i2am: Callable[..., Outcome], tmp_path: Path) -> None:  # noqa: F811
    """At every stage: what is left grows until it suffices."""
    with disk(tmp_path / "disk", "64m") as place:
        run = write_run(place / "run.zarr")
        whole = shutil.copytree(run, tmp_path / "whole.zarr")
        sound = committed(run)
        command = ("analyze", run, "--out", place / "out", "--direct", "--quiet")
        leave, refused = 4096, 0
        while True:
            filler = fill_up(place, leave)
            done = i2am(*command)
            filler.unlink()
            assert committed(run) == sound
            if done.status == 0:
                break
            done.refused("[Nn]o space left")
            assert not (place / "out").exists() or list((place / "out").iterdir()) == []
            assert not list(place.rglob("*.tmp"))
            leave, refused = leave * 2, refused + 1
        assert refused >= 4
        assert i2am("analyze", whole, "--out", tmp_path / "out", "--direct", "--quiet").status == 0
        for table in (tmp_path / "out/tables").iterdir():
            assert (place / "out/tables" / table.name).read_bytes() == table.read_bytes()


def test_a_disk_that_turns_read_only_during_capture(
    server: Forks, whole: dict[str, Any], tmp_path: Path
) -> None:
    with disk(tmp_path / "disk", "32m") as place:
        run = place / "run.zarr"
        command = ("capture", settings(tmp_path, run), "--direct", "--quiet")
        capture = server.start(*command)
        capture.until(lambda: records(run) >= 1)
        # Between two samples, when no file is open for writing.
        mount = ["mount", "-o", "remount,ro", str(place)]
        capture.until(lambda: subprocess.run(mount, capture_output=True, check=False).returncode == 0)
        capture.wait().refused("no permission for .*Read-only file system")
        before = committed(run)
        assert verify(run).ok
        server.run(*command).refused("Read-only file system|no permission")
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        assert committed(run) == before
        done = server.run(*command)
        assert done.status == 0, done.err
        check(run, whole)


def test_a_folder_that_may_no_longer_be_written(server: Forks, whole: dict[str, Any], tmp_path: Path) -> None:
    """Rights that are taken away in the middle, for a process that they hold for."""
    run = tmp_path / "run.zarr"
    command = ("capture", settings(tmp_path, run), "--direct", "--quiet")
    capture = server.start(*command, mortal=True)
    capture.until(lambda: records(run) >= 2)
    folders = [run, *(path for path in run.rglob("*") if path.is_dir())]
    allow(folders, 0o555)
    capture.wait().refused("no permission for .*check owner, mode and mount")
    before = committed(run)
    assert verify(run).ok
    allow(folders, 0o755)
    done = server.start(*command, mortal=True).wait()
    assert done.status == 0, done.err
    assert {name: committed(run)[name] for name in before} == before
    check(run, whole)


def allow(folders: list[Path], mode: int) -> None:
    for folder in folders:
        with suppress(FileNotFoundError):  # a staging folder that has gone
            folder.chmod(mode)
