"""Temporary files of `LocalLocation`: whole files for readers, whoever writes, sweeps or dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from i2am.storage.locations.base import STAGING
from i2am.storage.locations.local import LocalLocation
from i2am.storage.writing.staging import sweep

ROOT = Path(__file__).parents[2]


def test_sweeps_take_nothing_from_living_writers(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    place, over = LocalLocation(tmp_path), Event()

    def write(letter):
        for _ in range(200):
            place.write("sub/file", letter * 1000)
            assert place.read("sub/file") in (b"a" * 1000, b"b" * 1000)
        return True

    def tidy():
        while not over.wait(0.0005):
            sweep(tmp_path, lambda _: ())
        return True

    with ThreadPoolExecutor(4) as pool:
        tidying = [pool.submit(tidy) for _ in range(2)]
        writing = [pool.submit(write, letter) for letter in (b"a", b"b")]
        try:
            assert all(future.result() for future in writing)
        finally:
            over.set()
        assert all(future.result() for future in tidying)
    sweep(tmp_path, lambda _: ())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "sub"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_writer_that_is_killed_leaves_the_old_file_and_something_to_sweep(tmp_path, moment):
    place = LocalLocation(tmp_path)
    place.write("file", b"old")
    code = "import os, signal; from pathlib import Path\n"
    code += "from i2am.storage.locations.local import LocalLocation\n"
    code += f"os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    code += f"LocalLocation(Path({str(tmp_path)!r})).write('file', b'new')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert place.read("file") == b"old"
    assert len(list((tmp_path / STAGING).iterdir())) == 1
    sweep(tmp_path, lambda _: ())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_writer_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(fd):
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        LocalLocation(tmp_path).write("file", b"new")
    assert [path.name for path in tmp_path.rglob("*")] == [STAGING]
