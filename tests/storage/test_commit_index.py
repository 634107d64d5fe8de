"""The index of commit records: quick to read, never believed where a record has changed."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import threading

import pytest

import i2am
from i2am.storage.locations.open import locate
from i2am.storage.reading.commit_index import INDEX, compact
from tests.storage.synthetic import IMAGES, LAYERS, TIMESTEPS, check_values, fill, write_run

SAMPLES = tuple(f"s{i:02d}" for i in range(20))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "r.zarr"
    write_run(path, SAMPLES)
    return path


@pytest.fixture
def run_path(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "r.zarr")  # with the times of change, as cp -a


def reads(run, monkeypatch):
    """Which commit records are read, one by one, to see the fingerprints of all samples."""
    seen = []
    real = type(locate(run.path)).read

    def read(self, path, most=None):
        if path.startswith("commits/s"):
            seen.append(path)
        return real(self, path, most)

    with monkeypatch.context() as patch:
        patch.setattr(type(locate(run.path)), "read", read)
        prints = {sample: run.fingerprint(sample) for sample in run.samples}
    return seen, prints


class Contract:
    def test_many_records_cost_few_reads(self, url, monkeypatch):
        truth = {s: i2am.open_run(url).fingerprint(s) for s in SAMPLES}
        seen, prints = reads(i2am.open_run(url), monkeypatch)
        assert (len(seen), prints) == (len(SAMPLES), truth)
        assert compact(url) == len(SAMPLES)
        assert compact(url) == 0, "nothing is new"
        seen, prints = reads(i2am.open_run(url), monkeypatch)
        assert (len(seen), prints) == (8, truth)
        run = pickle.loads(pickle.dumps(i2am.open_run(url)))
        assert run.record(SAMPLES[3]) == i2am.open_run(url).record(SAMPLES[3])
        report = i2am.verify(url)
        assert report.ok
        assert report.notes == ()

    def test_a_sample_captured_anew_is_not_answered_from_the_index(self, url, monkeypatch):
        compact(url)
        place = locate(url)
        old = i2am.open_run(url).fingerprint(SAMPLES[5])
        for path in [*i2am.open_run(url).files(SAMPLES[5]), f"commits/{SAMPLES[5]}.json"]:
            place.remove(path)
        assert not i2am.verify(url).ok, "the index knows of a sample whose record is gone"
        with i2am.resume_run(url) as writer, writer.sample(SAMPLES[5]) as sink:
            fill(sink, LAYERS, range(len(TIMESTEPS)), IMAGES)
            sink.annotate(again=True)
        run = i2am.open_run(url)
        seen, prints = reads(run, monkeypatch)
        assert prints[SAMPLES[5]] != old
        assert len(seen) <= 9
        assert run.record(SAMPLES[5])["annotations"] == {"again": True}
        report = i2am.verify(url)
        assert report.ok
        assert any("compact" in note for note in report.notes)
        assert compact(url) == len(SAMPLES)
        assert i2am.verify(url).notes == ()

    def test_a_deleted_record_is_a_sample_that_is_gone(self, url):
        compact(url)
        locate(url).remove(f"commits/{SAMPLES[2]}.json")
        assert SAMPLES[2] not in i2am.open_run(url).samples
        (first, *_) = i2am.verify(url).problems
        assert (first.sample, first.path) == (SAMPLES[2], f"commits/{SAMPLES[2]}.json")


class TestLocal(Contract):
    @pytest.fixture
    def url(self, run_path):
        return str(run_path)


class TestS3(Contract):
    @pytest.fixture
    def url(self, bucket, request):
        url = f"{bucket}/{request.node.name}/r.zarr"
        write_run(url, SAMPLES)
        return url


def test_any_damage_of_the_index_is_found_and_changes_nothing(run_path):
    truth = {s: i2am.open_run(run_path).record(s) for s in SAMPLES}
    compact(run_path)
    data = (run_path / INDEX).read_bytes()
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    for _ in range(60):
        harmed = bytearray(data)
        at = chance.randrange(len(data))
        harmed[at] ^= 1 << chance.randrange(8)
        (run_path / INDEX).write_bytes(harmed if chance.random() < 0.7 else data[:at])
        run = i2am.open_run(run_path)
        assert {s: run.record(s) for s in SAMPLES} == truth, seed
        assert [p.path for p in i2am.verify(run_path).problems] == [INDEX], seed


def test_a_lying_index_is_found(run_path):
    """One whose own digest fits, but that says something else than an untouched record."""
    compact(run_path)
    first, _, body = (run_path / INDEX).read_bytes().partition(b"\n")
    from i2am.storage.format.signed_json import sha256

    body = body.replace(b'"annotations":{}', b'"annotations":{"a":1}', 1)
    said = json.loads(first) | {"sha256": sha256(body)}
    (run_path / INDEX).write_bytes(json.dumps(said, sort_keys=True).encode() + b"\n" + body)
    assert any(p.path == INDEX for p in i2am.verify(run_path).problems)


def test_an_index_of_another_run_serves_nobody(run_path, tmp_path):
    write_run(tmp_path / "other.zarr", SAMPLES)
    compact(tmp_path / "other.zarr")
    shutil.copy2(tmp_path / "other.zarr" / INDEX, run_path / INDEX)
    check_values(i2am.open_run(run_path))
    assert not i2am.verify(run_path).ok


def test_damaged_records_are_left_out(run_path):
    record = run_path / "commits" / f"{SAMPLES[0]}.json"
    record.write_bytes(record.read_bytes()[:-1])
    assert compact(run_path) == len(SAMPLES) - 1
    with pytest.raises(i2am.DamagedSample, match=SAMPLES[0]):
        [i2am.open_run(run_path).fingerprint(sample) for sample in SAMPLES]


def test_threads_share_the_records(run_path):
    compact(run_path)
    run, found = i2am.open_run(run_path), []
    threads = [
        threading.Thread(target=lambda: found.append([run.fingerprint(s) for s in SAMPLES])) for _ in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(each) for each in found}) == 1


def test_an_index_leaves_nothing_else_behind(run_path):
    before = {path.name for path in run_path.iterdir()}
    compact(run_path)
    assert {path.name for path in run_path.iterdir()} == before
