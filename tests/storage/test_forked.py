"""A forked child works, or is refused in one line; it never waits for threads that it does not have."""

from __future__ import annotations

import multiprocessing
import os
import uuid

import numpy as np
import pytest

import i2am
from tests.storage.synthetic import LAYERS, TIMESTEPS, fill, write_run

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def in_child(work):
    """What `work` returns, or the error it raises, in a forked child."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def run():
        try:
            theirs.send(work())
        except BaseException as error:  # noqa: BLE001
            theirs.send(error)
        theirs.close()
        os._exit(0)

    child = context.Process(target=run)
    child.start()
    try:
        assert ours.poll(120), "the child hangs"
        return ours.recv()
    finally:
        child.kill()
        child.join()


def sums(path):
    run = i2am.open_run(path)
    maps = i2am.attribution_maps(run, "r2g", layers="down*").to_numpy()
    return np.nansum(maps), np.nansum(run.scores(LAYERS[0].name).compute())


def test_a_child_computes_what_its_parent_computed(tmp_path):
    path = write_run(tmp_path / "run.zarr", ["a", "b"]).path
    wanted = sums(path)
    assert in_child(lambda: sums(path)) == wanted
    assert in_child(lambda: in_child(lambda: sums(path))) == wanted
    assert sums(path) == wanted  # the parent's own threads are as they were


@pytest.mark.parametrize("what", ["open", "read", "write"])
def test_an_object_store_that_the_parent_used_is_refused(bucket, what):
    url = f"{bucket}/{uuid.uuid4().hex}/run.zarr"
    run = write_run(url, ["a"])
    works = {
        "open": lambda: i2am.open_run(url),
        "read": lambda: run.image("generated", "a"),
        "write": lambda: i2am.create_run(url + "2", LAYERS, TIMESTEPS, ["a"]),
    }
    error = in_child(works[what])
    assert isinstance(error, i2am.InputError)
    assert "an object store is used in a forked child process; expected" in str(error)
    assert "spawn" in str(error)
    assert i2am.open_run(url).samples == ("a",)


def test_a_writer_that_the_parent_opened_is_refused(tmp_path):
    with i2am.create_run(tmp_path / "run.zarr", LAYERS, TIMESTEPS, ["a", "b"]) as writer:
        with writer.sample("a") as sink:
            fill(sink, LAYERS, range(len(TIMESTEPS)))

        def begin():
            with writer.sample("b"):
                pass

        with writer.sample("b") as sink:
            for work in (begin, sink.commit, lambda: fill(sink, LAYERS, range(1))):
                error = in_child(work)
                assert "opened for writing is used in a forked child process" in str(error)
            assert in_child(writer.close) is None
            fill(sink, LAYERS, range(len(TIMESTEPS)))
    assert i2am.verify(tmp_path / "run.zarr").ok
    assert i2am.open_run(tmp_path / "run.zarr").samples == ("a", "b")
