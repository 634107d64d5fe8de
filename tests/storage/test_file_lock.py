"""Locks on files: one holder at a time, released with their process, never through a link."""

from __future__ import annotations

import subprocess
import sys

import pytest

from i2am.storage.locations.file_lock import locked_folder, remove_abandoned, try_lock


def test_one_holder_at_a_time(tmp_path):
    path = tmp_path / "lock"
    with try_lock(path) as lock:
        assert try_lock(path) is None
        lock.release()
        lock.release()
        second = try_lock(path)
        assert second is not None
        second.release()
    assert path.exists()


def test_the_lock_of_another_process_ends_with_it(tmp_path):
    script = "import sys; from pathlib import Path; from i2am.storage.locations.file_lock import try_lock\n"
    script += "lock = try_lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    path = tmp_path / "lock"
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert try_lock(path) is None
        process.kill()
        process.wait()
        assert try_lock(path) is not None


def test_neither_links_nor_absent_files_are_locked(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic link"):
        try_lock(tmp_path / "link")
    with pytest.raises(FileNotFoundError):
        try_lock(tmp_path / "absent", create=False)
    with pytest.raises(FileNotFoundError):
        try_lock(tmp_path / "no/folder")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_only_abandoned_folders_are_removed(tmp_path):
    lock = locked_folder(tmp_path, "work-")
    folder = lock.path.parent
    remove_abandoned(folder)
    assert folder.exists()
    lock.release()
    remove_abandoned(folder)
    assert not folder.exists()
