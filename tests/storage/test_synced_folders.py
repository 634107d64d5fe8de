"""Every folder that a run needs is written into the folder above it on the medium."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import i2am
from tests.storage.synthetic import LAYERS, TIMESTEPS, fill


@pytest.fixture
def medium(monkeypatch):
    """The folders that were made, and those that were synced after the last entry was made in them."""
    made: list[Path] = []
    synced: set[Path] = set()
    mkdir, fsync = os.mkdir, os.fsync

    def make(path, *rest, **more):
        mkdir(path, *rest, **more)
        made.append(Path(path))
        synced.discard(Path(path).parent)

    def sync(fd):
        synced.add(Path(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    monkeypatch.setattr(os, "mkdir", make)
    monkeypatch.setattr(os, "fsync", sync)
    return made, synced


def lost(medium, root: Path) -> set[Path]:
    """Folders that a power cut may take away: only what is unfinished may be among them."""
    made, synced = medium
    return {
        path
        for path in made
        if path.exists()
        and path.parent not in synced
        and ".staging" not in path.relative_to(root).parts
        and not path.name.endswith(".new")
    }


def test_new_parents_of_a_run_and_images_added_later_outlive_a_power_cut(tmp_path, medium):
    run = tmp_path / "new" / "deeper" / "run.zarr"
    with i2am.create_run(run, LAYERS, TIMESTEPS, ["a", "b"]) as writer:
        assert lost(medium, tmp_path) == set()
        writer.add_image("late", (2, 3, 3))
        with writer.sample("a") as sink:
            fill(sink, LAYERS, range(len(TIMESTEPS)))
            sink.put_image("late", np.zeros((2, 3, 3), "u1"))
        assert (run / "images" / "late") in medium[0]
        assert lost(medium, tmp_path) == set()
    assert {tmp_path / "new", tmp_path / "new" / "deeper"} <= set(medium[0])
    assert lost(medium, tmp_path) == set()


def test_any_file_that_is_written_into_new_folders_is(tmp_path, medium):
    from i2am.storage.locations.open import locate

    place = locate(tmp_path)
    place.write("failures/deep/er/x.json", b"1")
    assert place.write_new("other/y.json", b"1")
    assert len(medium[0]) >= 4
    assert lost(medium, tmp_path) == set()
