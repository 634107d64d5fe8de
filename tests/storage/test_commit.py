"""A sample exists wholly or not at all: after exceptions, full disks and kills, and with several writers."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import i2am
from i2am.storage.errors import AlreadyExists, NoPermission, SampleBusy, StorageFull
from tests.storage.synthetic import IMAGES, LAYERS, TIMESTEPS, check_values, fill, write_run

STEPS = range(len(TIMESTEPS))


def files(path):
    return {os.path.relpath(os.path.join(d, f), path) for d, _, names in os.walk(path) for f in names}


def new(path, samples=("a", "b", "c"), **options):
    return i2am.create_run(path, LAYERS, TIMESTEPS, samples, image_shapes=IMAGES, **options)


@pytest.mark.parametrize("raised", [RuntimeError("crash"), KeyboardInterrupt()])
def test_after_an_exception_nothing_of_the_sample_remains(tmp_path, raised):
    with new(tmp_path / "r.zarr") as writer:
        before = files(writer.path)
        with pytest.raises(type(raised)), writer.sample("b") as sink:
            fill(sink, LAYERS, [0, 1], IMAGES)
            raise raised
        assert files(writer.path) == before
        assert writer.missing == ("a", "b", "c")
        with writer.sample("b") as sink:
            fill(sink, LAYERS, STEPS, IMAGES)
        assert writer.committed == ("b",)
    assert not (tmp_path / "r.zarr/.staging").exists()
    assert i2am.verify(tmp_path / "r.zarr").ok


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["writev", "fsync", "replace"])
def test_a_failing_system_call_at_any_time_leaves_nothing(tmp_path, monkeypatch, code, call):
    kind = StorageFull if code in (errno.ENOSPC, errno.EDQUOT) else NoPermission
    with new(tmp_path / "r.zarr") as writer:
        before = files(writer.path)
        real = getattr(os, call)
        for nth in (0, 5):
            calls = iter(range(10**6))

            def fail(*args, nth=nth, calls=calls, **kwargs):
                if next(calls) >= nth:
                    raise OSError(code, os.strerror(code))
                return real(*args, **kwargs)

            monkeypatch.setattr(os, call, fail)
            with pytest.raises(kind, match="for"), writer.sample("a") as sink:
                fill(sink, LAYERS, STEPS, IMAGES)
            monkeypatch.setattr(os, call, real)
            assert files(writer.path) == before
            assert i2am.open_run(writer.path).samples == ()
        with writer.sample("a") as sink:
            fill(sink, LAYERS, STEPS, IMAGES)
    assert i2am.verify(tmp_path / "r.zarr").ok


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_really_fills(small_disk):
    spec = i2am.LayerSpec("l", 4, 32, (16, 16), (4, 4), representation="factors")
    options = {"timesteps": [1, 0], "samples": ["a", "b", "c", "d"]}
    with pytest.raises(
        StorageFull, match=r"does not fit its disk; expected at least .* free; got .* free; choose fewer"
    ):
        i2am.create_run(small_disk / "r.zarr", [spec], **options)
    (small_disk / "ballast").write_bytes(b"")
    with i2am.create_run(small_disk / "r.zarr", [spec], [1, 0], ["a"]) as writer:
        (small_disk / "ballast").write_bytes(bytes(400_000))
        with (
            pytest.raises(StorageFull, match=r"no space left for .*; free some space and run again"),
            writer.sample("a") as sink,
        ):
            fill(sink, [spec], [0, 1])
        assert not files(small_disk / "r.zarr/.staging")
        with pytest.raises(StorageFull, match="does not fit its disk"):
            i2am.resume_run(writer.path)
        (small_disk / "ballast").unlink()
        with writer.sample("a") as sink:
            fill(sink, [spec], [0, 1])
    check_values(i2am.open_run(small_disk / "r.zarr"), [spec])


def test_a_sample_in_work_is_busy_and_the_others_are_not(tmp_path):
    with new(tmp_path / "r.zarr") as first, i2am.resume_run(tmp_path / "r.zarr") as second:
        with first.sample("a") as sink:
            with (
                pytest.raises(SampleBusy, match="sample 'a' is being written by another process"),
                second.sample("a"),
            ):
                pass
            with second.sample("b") as other:
                fill(other, LAYERS, STEPS)
            fill(sink, LAYERS, STEPS)
        with pytest.raises(AlreadyExists), second.sample("a"):
            pass
    check_values(i2am.open_run(tmp_path / "r.zarr"))


def test_closing_one_writer_leaves_the_samples_of_another_alone(tmp_path):
    with new(tmp_path / "r.zarr") as first, first.sample("a") as sink:
        fill(sink, LAYERS, [0, 1, 2])
        i2am.resume_run(tmp_path / "r.zarr").close()
        fill(sink, LAYERS, [3, 4])
    check_values(i2am.open_run(tmp_path / "r.zarr"))


def write_share(path, samples):
    with i2am.resume_run(path) as writer:
        for sample in samples:
            with writer.sample(sample) as sink:
                fill(sink, LAYERS, STEPS, IMAGES)


def test_several_processes_equal_one(tmp_path):
    samples = [f"s{i}" for i in range(6)]
    one = write_run(tmp_path / "one.zarr", samples)
    new(tmp_path / "many.zarr", samples).close()
    context = multiprocessing.get_context("spawn")
    shares = [samples[0::3], samples[1::3], samples[2::3]]
    processes = [
        context.Process(target=write_share, args=(tmp_path / "many.zarr", share)) for share in shares
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    many = i2am.open_run(tmp_path / "many.zarr")
    assert many.samples == one.samples
    for spec in LAYERS:
        assert np.array_equal(many.scores(spec.name).compute(), one.scores(spec.name).compute())
    assert files(one.path) == files(many.path)
    assert i2am.verify(many.path).ok


def test_a_batch_of_samples_under_way_at_once(tmp_path):
    writer = new(tmp_path / "r.zarr", queue_bytes=500)
    with writer, writer.sample("a") as a, writer.sample("b") as b, writer.sample("c") as c:
        for step in STEPS:
            for sink in (a, b, c):
                fill(sink, LAYERS, [step])
    check_values(i2am.open_run(tmp_path / "r.zarr"))


WRITER = """
import sys, time
import i2am
from tests.storage.synthetic import IMAGES, LAYERS, TIMESTEPS, fill
path = sys.argv[1]
print("ready", flush=True)
with i2am.resume_run(path) as writer:
    for sample in writer.missing:
        with writer.sample(sample) as sink:
            for step in range(len(TIMESTEPS)):
                fill(sink, LAYERS, [step])
                time.sleep(0.002)
            fill(sink, LAYERS, [], IMAGES)
"""


def test_killed_at_random_moments_and_resumed(tmp_path):
    samples = [f"s{i:02d}" for i in range(24)]
    whole = write_run(tmp_path / "whole.zarr", samples)
    path = tmp_path / "killed.zarr"
    new(path, samples).close()
    random.seed(7)
    kept: dict[str, str] = {}
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(random.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        run = i2am.open_run(path)
        assert all(run.fingerprint(sample) == digest for sample, digest in kept.items())
        kept = {sample: run.fingerprint(sample) for sample in run.samples}
        assert i2am.verify(path).ok
    subprocess.run([sys.executable, "-c", WRITER, str(path)], check=True, capture_output=True)
    run = i2am.open_run(path)
    assert run.samples == tuple(samples)
    assert all(run.fingerprint(sample) == digest for sample, digest in kept.items())
    for spec in LAYERS:
        assert np.array_equal(run.scores(spec.name).compute(), whole.scores(spec.name).compute())
    assert files(path) == files(whole.path)
    report = i2am.verify(path)
    assert report.ok
    assert report.notes == ()


CRASH = """
import os, sys
import i2am
from tests.storage.synthetic import IMAGES, LAYERS, fill
real = os.replace
def stop(source, target):
    os._exit(9) if str(target).endswith(".json") else real(source, target)
os.replace = stop
with i2am.resume_run(sys.argv[1]).sample(sys.argv[2]) as sink:
    fill(sink, LAYERS, range(5), IMAGES)
"""


def crash_between_rename_and_record(path, sample):
    """Leave a run as a process leaves it that dies after its shards are in place, before the record."""
    command = [sys.executable, "-c", CRASH, str(path), sample]
    assert subprocess.run(command, check=False).returncode == 9


def test_shards_in_place_without_a_record_are_no_sample_and_are_cleared(tmp_path):
    path = tmp_path / "r.zarr"
    with new(path, ["a", "b"]) as writer:
        clean = files(path)
    crash_between_rename_and_record(path, "a")
    assert len(files(path)) > len(clean) + 5
    report = i2am.verify(path)
    assert report.ok
    assert any("did not finish" in note for note in report.notes)
    assert i2am.open_run(path).samples == ()
    with i2am.resume_run(path) as writer:
        assert files(path) == clean
        assert writer.missing == ("a", "b")


def test_taking_the_sample_again_clears_what_a_crash_left(tmp_path):
    path = tmp_path / "r.zarr"
    with new(path, ["a"]) as writer:
        clean = files(path)
        crash_between_rename_and_record(path, "a")
        with pytest.raises(RuntimeError), writer.sample("a"):
            raise RuntimeError
        assert files(path) == clean


def test_creating_is_all_or_nothing(tmp_path, monkeypatch):
    real = os.fsync
    for nth in range(0, 20, 4):
        calls = iter(range(10**6))

        def fail(fd, nth=nth, calls=calls):
            if next(calls) >= nth:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(fd)

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(StorageFull):
            new(tmp_path / "r.zarr")
        monkeypatch.setattr(os, "fsync", real)
        assert list(tmp_path.iterdir()) == []


def test_creating_where_one_may_not(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(NoPermission, match=r"no permission for .*r.zarr"):
        new(tmp_path / "r.zarr")


def create_and_say(path, queue):
    try:
        new(path).close()
        queue.put("created")
    except AlreadyExists:
        queue.put("exists")


def test_of_two_that_create_the_same_run_one_succeeds(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=create_and_say, args=(tmp_path / "r.zarr", queue)) for _ in range(3)]
    for process in processes:
        process.start()
    said = sorted(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert said == ["created", "exists", "exists"]
    assert [p.name for p in tmp_path.iterdir()] == ["r.zarr"]
    assert i2am.verify(tmp_path / "r.zarr").ok
