"""A run whose folder cannot be written: every question is answered, and nothing is kept beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import i2am
from i2am.storage.errors import NoPermission
from i2am.storage.locations.local import LocalLocation
from tests.analysis.builders import build, layer

QUESTIONS = """
import sys
import i2am
from i2am.analysis.study.study import analyze
run = i2am.open_run(sys.argv[1])
for direction in ("r2g", "g2r"):
    for level in ("unified", "head", "layer", "time"):
        print(float(i2am.attribution_maps(run, direction, level).to_numpy().sum()))
analyze(run, sys.argv[2])
print(i2am.verify(sys.argv[1]).ok)
"""


def answers(run: Path, out: Path, *before: str) -> list[str]:
    done = subprocess.run(
        [*before, sys.executable, "-c", QUESTIONS, str(run), str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_every_question_is_answered_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """By another process, which is not above permissions."""
    unprivileged = []
    if os.geteuid() == 0:
        drop = "-dac_override,-dac_read_search"
        unprivileged = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"]
        if subprocess.run([*unprivileged, "true"], check=False, capture_output=True).returncode:
            pytest.skip("this system cannot give up a superuser's rights")
    folder = tmp_path / "ro"
    build(folder / "run.zarr", [layer("mid"), layer("up")], steps=5)
    for path in (*folder.rglob("*"), folder):
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        found = answers(folder / "run.zarr", tmp_path / "out", *unprivileged)
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)
    assert [path.name for path in folder.iterdir()] == ["run.zarr"]
    assert found == answers(folder / "run.zarr", tmp_path / "again")
    assert (folder / "run.marginals.zarr").is_dir()


def test_a_place_that_was_asked_for_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build(tmp_path / "run.zarr", [layer("mid")], steps=2)[0]

    def refused(self: LocalLocation, path: str, data: bytes) -> None:
        raise NoPermission(f"no permission for {path}")

    monkeypatch.setattr(LocalLocation, "write", refused)
    assert i2am.attribution_maps(run, "r2g", store=False).to_numpy().size
    with pytest.raises(NoPermission, match="cannot be written"):
        i2am.attribution_maps(run, "r2g", store=str(tmp_path / "kept.zarr")).to_numpy()
