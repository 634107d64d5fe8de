"""Samples on object storage have one writer at a time; leases that have run out are taken over."""

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
from i2am.storage.locations.object_store import ObjectStoreLocation
from i2am.storage.locations.open import locate
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


def put_lease_of_another(place, sample, renewals=0):
    content = {"id": "x", "name": "process 1 of node7", "renewals": renewals}
    place.write(lease_path(sample), json.dumps(content).encode())


def test_one_holds_a_sample_at_a_time(place):
    first = Lease(place, "a")
    with pytest.raises(i2am.SampleBusy, match=rf"sample 'a' is being written.*process {os.getpid()} of"):
        Lease(place, "a")
    Lease(place, "b").release()
    first.release()
    second = Lease(place, "a")
    assert not second.taken_over
    second.release()
    assert place.names("leases") == []


def test_of_many_who_take_a_lease_one_does(url):
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


def test_a_lease_holds_while_it_is_renewed_and_runs_out_when_it_is_not(place, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    for renewals in range(4):
        put_lease_of_another(place, "a", renewals)
        with pytest.raises(i2am.SampleBusy, match="process 1 of node7"):
            Lease(place, "a")
        now[0] += lease.LEASE_SECONDS - 1
    with pytest.raises(i2am.SampleBusy):
        Lease(place, "a")
    now[0] += 2
    taken = Lease(place, "a")
    assert taken.taken_over
    taken.release()


def test_renewals_change_the_content_and_keep_the_lease(place, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.02)
    held = Lease(place, "a")
    seen = set()
    end = time.monotonic() + 20
    while len(seen) < 4 and time.monotonic() < end:
        seen.add(place.read(lease_path("a")))
        time.sleep(0.01)
    assert len(seen) >= 4
    held.check()
    held.release()
    assert place.names("leases") == []


def test_a_holder_that_was_overtaken_stops_and_touches_nothing(url, monkeypatch):
    place = locate(url)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 3600)
    with new(url) as writer:
        uploaded = []
        real = ObjectStoreLocation.upload

        def upload(self, path, source):
            made = real(self, path, source)
            uploaded.append(path)
            if len(uploaded) == 2:  # a long pause, in which another process takes the sample over
                put_lease_of_another(place, "a")
                monkeypatch.setattr(lease, "LEASE_SECONDS", 0)
            return made

        monkeypatch.setattr(ObjectStoreLocation, "upload", upload)
        with (
            pytest.raises(i2am.SampleBusy, match="taken over by another process"),
            writer.sample("a") as sink,
        ):
            fill(sink, LAYERS, STEPS, IMAGES)
        assert len(uploaded) == 2
        assert all(place.size(path) is not None for path in uploaded), "they may be the other's"
        assert json.loads(place.read(lease_path("a")))["id"] == "x"
        assert writer.missing == ("a", "b")


def test_a_lost_answer_to_a_renewal_costs_nothing(place, monkeypatch):
    held = Lease(place, "a")
    real = type(place).replace

    def stored_but_not_said(self, path, old, new):
        real(self, path, old, new)
        raise i2am.StoreUnavailable("the answer was lost")

    monkeypatch.setattr(type(place), "replace", stored_but_not_said)
    with pytest.raises(i2am.StoreUnavailable):
        held._renew()
    monkeypatch.setattr(type(place), "replace", real)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0)
    held.check()
    held.release()
    assert place.names("leases") == []


@pytest.mark.parametrize("large", [False, True])
def test_a_late_put_of_a_former_owner_replaces_nothing(url, monkeypatch, tmp_path, large):
    """Before the new owner's put it is replaced, after it refused; files in parts, too."""
    if large:
        monkeypatch.setattr("i2am.storage.locations.object_store.ONE_REQUEST", 0)
    place, late = locate(url), tmp_path / "late"
    late.write_bytes(b"of a former owner")
    real = ObjectStoreLocation.upload
    answers = []

    def upload(self, path, source):
        before = real(self, path, late) if len(answers) == 1 else None  # the second file: just before
        made = real(self, path, source)
        answers.append((before, made, real(self, path, late)))
        return made

    with new(url) as writer, writer.sample("a") as sink:
        fill(sink, LAYERS, STEPS, IMAGES)
        monkeypatch.setattr(ObjectStoreLocation, "upload", upload)
    assert answers[:3] == [(None, True, False), (True, False, True), (None, True, False)]
    assert not any(after for _, made, after in answers if made)
    check_values(i2am.open_run(url))
    report = i2am.verify(url)
    assert (report.ok, place.names(".staging")) == (True, [])
    assert not any("staging" in note for note in report.notes)


def test_a_sample_whose_record_was_deleted_is_captured_again(place):
    url = place.url
    with new(url, ["a"]) as writer, writer.sample("a") as sink:
        fill(sink, LAYERS, STEPS, IMAGES)
    locate(url).remove("commits/a.json")
    with i2am.resume_run(url) as writer, writer.sample("a") as sink:
        fill(sink, LAYERS, STEPS, IMAGES)
    assert i2am.verify(url).ok
    check_values(i2am.open_run(url))


def test_parts_that_a_killed_writer_left_are_removed(url, monkeypatch):
    new(url).close()
    place = locate(url)
    place.write(".staging/c.0.0.0.0.0.0123", b"a part")
    place.write(".staging/c.1.0.0.0.0.4567", b"of b")
    put_lease_of_another(place, "a")
    i2am.resume_run(url).close()  # sees the lease, and that it does not change
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0)
    i2am.resume_run(url).close()
    assert place.names(".staging") == ["c.1.0.0.0.0.4567"]


def _write_and_die(url):
    """Upload one file of sample a, and be killed."""
    real = ObjectStoreLocation.upload

    def upload(self, *args):
        real(self, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    ObjectStoreLocation.upload = upload
    with i2am.resume_run(url) as writer, writer.sample("a") as sink:
        fill(sink, LAYERS, STEPS, IMAGES)


def killed_writer(url):
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(url,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_the_lease_of_a_killed_process_is_removed_with_what_it_put_once_it_has_run_out(url, monkeypatch):
    new(url).close()
    killed_writer(url)
    place = locate(url)
    assert place.names("leases") == ["a.json"]
    report = i2am.verify(url)
    assert report.ok, "a sample under way is no damage"
    assert any("leases/a.json" in note for note in report.notes)
    with i2am.resume_run(url) as writer:
        assert place.names("leases") == ["a.json"]
        with pytest.raises(i2am.SampleBusy, match="runs out in 60 s"), writer.sample("a"):
            pass
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0)
    with i2am.resume_run(url) as writer:
        assert place.names("leases") == []
        assert not any("/c.0." in path for path, _ in place.files())
        for sample in writer.missing:
            with writer.sample(sample) as sink:
                fill(sink, LAYERS, STEPS, IMAGES)
    check_values(i2am.open_run(url))
    report = i2am.verify(url)
    assert report.ok
    assert report.notes == ()


def test_the_lease_of_a_process_killed_after_its_commit_is_removed(url):
    with new(url) as writer, writer.sample("a") as sink:
        fill(sink, LAYERS, STEPS, IMAGES)
    put_lease_of_another(locate(url), "a")
    i2am.resume_run(url).close()
    assert locate(url).names("leases") == []
    assert i2am.verify(url).ok


def test_a_lost_record_is_damage(url):
    """Shards with neither record nor lease: nobody is at work on them."""
    with new(url) as writer, writer.sample("a") as sink:
        fill(sink, LAYERS, STEPS, IMAGES)
    locate(url).remove("commits/a.json")
    report = i2am.verify(url)
    assert {problem.sample for problem in report.problems} == {"a"}
    assert "commit record is missing" in str(report.problems[0])


def test_a_server_that_is_lost_while_a_lease_is_released_loses_nothing(place, monkeypatch):
    def lost(self, path):
        raise i2am.StoreUnavailable("gone")

    held = Lease(place, "a")
    with monkeypatch.context() as patch:
        patch.setattr(type(place), "read", lost)
        held.release()
    assert not any(thread.name == "i2am-lease" for thread in threading.enumerate())
    assert place.names("leases") == ["a.json"]
    place.remove("leases/a.json")


def test_clearing_up_after_a_dead_holder_never_takes_what_another_committed_meanwhile(url, monkeypatch):
    """Between the look at the lease and its takeover, another process writes the sample and is done."""
    new(url).close()
    killed_writer(url)
    i2am.resume_run(url).close()
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0)
    real = lease._has_run_out

    def slow(location, sample, content):
        assert real(location, sample, content)
        monkeypatch.setattr(lease, "_has_run_out", real)
        with i2am.resume_run(url) as other, other.sample("a") as sink:
            fill(sink, LAYERS, STEPS, IMAGES)
        return True

    monkeypatch.setattr(lease, "_has_run_out", slow)
    i2am.resume_run(url).close()
    run = i2am.open_run(url)
    assert run.samples == ("a",)
    run.check("a")
    assert i2am.verify(url).ok
    assert locate(url).names("leases") == []


def test_a_renewal_counts_from_when_it_was_asked(place, monkeypatch):
    """Others count from when they saw it, which may be long before its answer came."""
    now = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    held = Lease(place, "a")
    real = type(place).replace

    def late(self, path, old, new):
        done = real(self, path, old, new)
        now[0] += 2 * lease.LEASE_SECONDS
        put_lease_of_another(place, "a")  # it has been taken over in the meantime
        return done

    monkeypatch.setattr(type(place), "replace", late)
    held._renew()
    monkeypatch.setattr(type(place), "replace", real)
    with pytest.raises(i2am.SampleBusy, match="taken over"):
        held.check()
    held.release()
    assert json.loads(place.read(lease_path("a")))["id"] == "x"
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
    real = ObjectStoreLocation.size

    def size(self, path):
        asked.append(path)
        return real(self, path)

    monkeypatch.setattr(ObjectStoreLocation, "size", size)
    for name in names:
        run.check(name)
    assert len(asked) == 8 * len(run.files("s0"))
    gone = next(iter(run.files("s19")))
    locate(url).remove(gone)
    with pytest.raises(i2am.DamagedSample, match="s19"):
        fresh = i2am.open_run(url)
        for name in names:
            fresh.check(name)
