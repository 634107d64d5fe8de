"""`verify` while a sample is being written, set aside or given up: no damage, and no error."""

from __future__ import annotations

import os

import pytest

import i2am
from i2am.storage.locations.local import LocalLocation
from tests.storage.synthetic import LAYERS, TIMESTEPS, fill

STEPS = range(len(TIMESTEPS))


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run.zarr"
    with i2am.create_run(path, LAYERS, TIMESTEPS, ["a", "b"]) as writer, writer.sample("a") as sink:
        fill(sink, LAYERS, STEPS)
    return path


def test_files_that_came_and_went_while_they_were_listed(run, monkeypatch):
    walk = os.walk

    def with_ghosts(root, **options):
        for folder, folders, names in walk(root, **options):
            yield folder, folders, [*names, "c.1.0.0.0.0", "x.tmp"]

    monkeypatch.setattr(os, "walk", with_ghosts)
    assert i2am.verify(run).ok


def commit(run):
    with i2am.resume_run(run) as writer, writer.sample("b") as sink:
        fill(sink, LAYERS, STEPS)


def test_a_sample_that_is_committed_while_its_files_are_listed(run, monkeypatch):
    """The listing saw its shards, but neither its record, which came later, nor its staging, gone by then."""
    commit(run)
    seen = [file for file in LocalLocation(run).files() if file[0] != "commits/b.json"]
    monkeypatch.setattr(LocalLocation, "files", lambda self: iter(seen))
    assert i2am.verify(run).ok


def test_a_sample_that_is_given_up_while_its_files_are_listed(run, monkeypatch):
    commit(run)
    seen = [file for file in LocalLocation(run).files() if file[0] != "commits/b.json"]
    for path in (run / "commits/b.json", *run.glob("**/c.1.*")):
        path.unlink()
    monkeypatch.setattr(LocalLocation, "files", lambda self: iter(seen))
    assert i2am.verify(run).ok


def test_a_writer_that_begins_after_the_listing(run, monkeypatch):
    commit(run)
    (run / "commits/b.json").unlink()
    seen = list(LocalLocation(run).files())
    assert not i2am.verify(run).ok  # nobody is at work on it
    monkeypatch.setattr(LocalLocation, "files", lambda self: iter(seen))
    (run / ".staging/b").mkdir(parents=True)
    assert i2am.verify(run).ok
