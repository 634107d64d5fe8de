"""Commit records: a scan over a remote run reads ahead, and every record is read once."""

from __future__ import annotations

import pickle
import threading

import pytest

import i2am
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.locations.object_store import ObjectStoreLocation
from i2am.storage.reading import record_cache
from tests.storage.synthetic import write_run

SAMPLES = tuple(f"s{i:02d}" for i in range(20))


@pytest.fixture(scope="module")
def url(bucket):
    write_run(f"{bucket}/r.zarr", SAMPLES)
    return f"{bucket}/r.zarr"


@pytest.fixture
def reads(monkeypatch):
    """Which commit records are read, and by which thread."""
    seen: list[tuple[str, str]] = []
    real = ObjectStoreLocation.read

    def read(self, path, most=None):
        if path.startswith("commits/s"):
            seen.append((path, threading.current_thread().name))
        return real(self, path, most)

    monkeypatch.setattr(ObjectStoreLocation, "read", read)
    monkeypatch.setattr(record_cache, "AHEAD", 8)
    return seen


def test_a_scan_reads_ahead_and_every_record_once(url, reads):
    run = i2am.open_run(url)
    found = {sample: run.fingerprint(sample) for sample in run.samples}
    assert sorted(path for path, _ in reads) == [f"commits/{sample}.json" for sample in SAMPLES]
    assert [thread for _, thread in reads].count("MainThread") == record_cache.SCAN_AFTER
    assert pickle.loads(pickle.dumps(run)).record(SAMPLES[3]) == run.record(SAMPLES[3])
    assert found == {sample: i2am.open_run(url).fingerprint(sample) for sample in SAMPLES}


def test_questions_about_single_samples_read_nothing_else(url, reads):
    run = i2am.open_run(url)
    for sample in (*SAMPLES[:3], *reversed(SAMPLES)):
        run.fingerprint(sample)
    assert len(reads) == len(SAMPLES)
    assert {thread for _, thread in reads} == {"MainThread"}


def test_a_damaged_record_ahead_is_an_error_of_its_own_sample(bucket, reads):
    url = f"{bucket}/damaged.zarr"
    names = [f"s{i:02d}" for i in range(12)]
    layer = LayerSpec("a", 1, 2, (1, 1), (1, 1))
    write_run(url, names, [layer])
    run = i2am.open_run(url)
    run._location.write("commits/s07.json", b"{}")
    for sample in names[:7]:
        run.fingerprint(sample)
    with pytest.raises(i2am.DamagedSample, match="s07"):
        run.fingerprint("s07")
    assert run.record("s08")["sample"] == "s08"


def test_threads_share_the_records(url):
    run, found = i2am.open_run(url), []
    threads = [
        threading.Thread(target=lambda: found.append([run.fingerprint(s) for s in SAMPLES])) for _ in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(each) for each in found}) == 1
