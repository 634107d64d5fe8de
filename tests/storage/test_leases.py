"""Samples on object storage have one writer at a time; the claims of those that are gone are taken over."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

import i2am
from i2am.storage.locations.open import locate
from i2am.storage.locations.remote import RemoteLocation
from i2am.storage.writing import lease
from i2am.storage.writing.lease import Lease, lease_path
from tests.storage.synthetic import IMAGES, LAYERS, TIMESTEPS, check_values, fill

STEPS = range(len(TIMESTEPS))


@pytest.fixture
def url(bucket):
    return f"{bucket}/{uuid.uuid4().hex}/run.zarr"


@pytest.fixture(params=["s3", "memory"])
def place(request):
    if request.param == "s3":
        yield locate(request.getfixturevalue("url"))
        return
    memory, name = fsspec.filesystem("memory"), uuid.uuid4().hex
    yield locate(f"memory://{name}/r.zarr")
    if memory.exists(f"/{name}"):
        memory.rm(f"/{name}", recursive=True)


def new(url, samples=("a", "b")):
    return i2am.create_run(url, LAYERS, TIMESTEPS, samples, image_shapes=IMAGES)


def as_another_machine(place, sample, beat=0):
    """A claim as a process of another machine would have left it."""
    content = json.dumps(
        {"host": "elsewhere", "name": "node7", "pid": 1, "owner": "x", "beat": beat}
    ).encode()
    place.write(lease_path(sample), content)
    return content


def test_one_holds_a_sample_at_a_time(place):
    first = Lease(place, "a")
    with pytest.raises(i2am.SampleBusy, match=rf"sample 'a' is being written.*process {os.getpid()} of"):
        Lease(place, "a")
    Lease(place, "b").release()
    first.release()
    second = Lease(place, "a")
    assert not second.inherited
    second.release()
    assert place.names("claims") == []


def test_of_many_who_claim_a_sample_one_does(url):
    place = locate(url)

    def take(_):
        try:
            return Lease(place, "a")
        except i2am.SampleBusy:
            return None

    with ThreadPoolExecutor(8) as threads:
        held = [each for each in threads.map(take, range(8)) if each is not None]
    assert len(held) == 1
    held[0].release()


def test_a_claim_stands_while_its_owner_beats_and_falls_when_it_does_not(place, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    for beat in range(4):
        as_another_machine(place, "a", beat)
        with pytest.raises(i2am.SampleBusy, match="process 1 of node7"):
            Lease(place, "a")
        now[0] += lease.LEASE_SECONDS - 1
    with pytest.raises(i2am.SampleBusy):
        Lease(place, "a")
    now[0] += 2
    taken = Lease(place, "a")
    assert taken.inherited
    taken.release()


def test_beats_change_the_content_and_keep_the_claim(place, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    held = Lease(place, "a")
    seen = set()
    end = time.monotonic() + 20
    while len(seen) < 4 and time.monotonic() < end:
        seen.add(place.read(lease_path("a")))
        time.sleep(0.01)
    assert len(seen) >= 4
    held.hold()
    held.release()
    assert place.names("claims") == []


def test_an_owner_that_was_overtaken_stops_and_touches_nothing(url, monkeypatch):
    place = locate(url)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 3600)
    with new(url) as writer:
        uploaded = []
        real = RemoteLocation.upload

        def upload(self, path, source):
            real(self, path, source)
            uploaded.append(path)
            if len(uploaded) == 2:  # a long pause, in which another machine takes the sample over
                as_another_machine(place, "a")
                monkeypatch.setattr(lease, "LEASE_SECONDS", 0)

        monkeypatch.setattr(RemoteLocation, "upload", upload)
        with (
            pytest.raises(i2am.SampleBusy, match="taken over by another process"),
            writer.sample("a") as sink,
        ):
            fill(sink, LAYERS, STEPS, IMAGES)
        assert len(uploaded) == 2
        assert all(place.size(path) is not None for path in uploaded), "they may be the other's"
        assert json.loads(place.read(lease_path("a")))["owner"] == "x"
        assert writer.missing == ("a", "b")


def test_a_lost_answer_to_a_beat_costs_nothing(place, monkeypatch):
    held = Lease(place, "a")
    real = RemoteLocation.replace

    def stored_but_not_said(self, path, old, new):
        real(self, path, old, new)
        raise i2am.StoreUnavailable("the answer was lost")

    monkeypatch.setattr(RemoteLocation, "replace", stored_but_not_said)
    with pytest.raises(i2am.StoreUnavailable):
        held._beat()
    monkeypatch.setattr(RemoteLocation, "replace", real)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0)
    held.hold()
    held.release()
    assert place.names("claims") == []


def _write_and_die(url):
    """Upload one file of sample a, and be killed."""
    real = RemoteLocation.upload

    def upload(self, *args):
        real(self, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    RemoteLocation.upload = upload
    with i2am.resume_run(url) as writer, writer.sample("a") as sink:
        fill(sink, LAYERS, STEPS, IMAGES)


def killed_writer(url):
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(url,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_the_claim_of_a_killed_process_is_swept_up_with_what_it_put(url):
    new(url).close()
    killed_writer(url)
    place = locate(url)
    assert place.names("claims") == ["a.json"]
    report = i2am.verify(url)
    assert report.ok, "a sample under way is no damage"
    assert any("claims/a.json" in note for note in report.notes)
    with i2am.resume_run(url) as writer:
        assert place.names("claims") == []
        assert not any("/c.0." in path for path, _ in place.files())
        for sample in writer.missing:
            with writer.sample(sample) as sink:
                fill(sink, LAYERS, STEPS, IMAGES)
    check_values(i2am.open_run(url))
    report = i2am.verify(url)
    assert report.ok
    assert report.notes == ()


def test_the_claim_of_a_process_killed_after_its_commit_is_swept_up(url):
    with new(url) as writer, writer.sample("a") as sink:
        fill(sink, LAYERS, STEPS, IMAGES)
    as_another_machine(locate(url), "a")
    i2am.resume_run(url).close()
    assert locate(url).names("claims") == []
    assert i2am.verify(url).ok


def test_a_lost_record_is_damage(url):
    """Shards with neither record nor claim: nobody is at work on them."""
    with new(url) as writer, writer.sample("a") as sink:
        fill(sink, LAYERS, STEPS, IMAGES)
    locate(url).remove("commits/a.json")
    report = i2am.verify(url)
    assert {problem.sample for problem in report.problems} == {"a"}
    assert "commit record is missing" in str(report.problems[0])


def test_a_server_that_is_lost_while_a_claim_is_given_up_loses_nothing(place, monkeypatch):
    def lost(self, path):
        raise i2am.StoreUnavailable("gone")

    held = Lease(place, "a")
    with monkeypatch.context() as patch:
        patch.setattr(RemoteLocation, "read", lost)
        held.release()
    assert not any(thread.name == "i2am-claim" for thread in threading.enumerate())
    assert place.names("claims") == ["a.json"]
    place.remove("claims/a.json")


def test_clearing_up_after_a_dead_owner_never_takes_what_another_committed_meanwhile(url, monkeypatch):
    """Between the look at the claim and its taking over, another process writes the sample and is done."""
    new(url).close()
    killed_writer(url)
    real = lease._is_gone

    def slow(location, sample, content):
        gone = real(location, sample, content)
        monkeypatch.setattr(lease, "_is_gone", real)
        with i2am.resume_run(url) as other, other.sample("a") as sink:
            fill(sink, LAYERS, STEPS, IMAGES)
        return gone

    monkeypatch.setattr(lease, "_is_gone", slow)
    i2am.resume_run(url).close()
    run = i2am.open_run(url)
    assert run.samples == ("a",)
    run.check("a")
    assert i2am.verify(url).ok
    assert locate(url).names("claims") == []


def test_a_beat_counts_from_when_it_was_asked(place, monkeypatch):
    """Others count from when they saw it, which may be long before its answer came."""
    now = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    held = Lease(place, "a")
    real = RemoteLocation.replace

    def late(self, path, old, new):
        done = real(self, path, old, new)
        now[0] += 2 * lease.LEASE_SECONDS
        as_another_machine(place, "a")  # it has been taken over in the meantime
        return done

    monkeypatch.setattr(RemoteLocation, "replace", late)
    held._beat()
    monkeypatch.setattr(RemoteLocation, "replace", real)
    with pytest.raises(i2am.SampleBusy, match="taken over"):
        held.hold()
    held.release()
    assert json.loads(place.read(lease_path("a")))["owner"] == "x"
    place.remove(lease_path("a"))


def test_what_a_killed_process_left_on_this_machine_is_removed_too(url, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    new(url).close()
    killed_writer(url)
    assert list(tmp_path.iterdir())
    with i2am.resume_run(url) as writer, writer.sample("b") as sink:
        assert len(list(tmp_path.iterdir())) == 1, "its own"
        fill(sink, LAYERS, STEPS, IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_many_samples_are_checked_by_one_listing(url, monkeypatch):
    names = [f"s{i}" for i in range(20)]
    with new(url, names) as writer:
        for name in names:
            with writer.sample(name) as sink:
                fill(sink, LAYERS, STEPS, IMAGES)
    run, asked = i2am.open_run(url), []
    real = RemoteLocation.size

    def size(self, path):
        asked.append(path)
        return real(self, path)

    monkeypatch.setattr(RemoteLocation, "size", size)
    for name in names:
        run.check(name)
    assert len(asked) == 8 * len(run.files("s0"))
    gone = next(iter(run.files("s19")))
    locate(url).remove(gone)
    with pytest.raises(i2am.DamagedSample, match="s19"):
        fresh = i2am.open_run(url)
        for name in names:
            fresh.check(name)
