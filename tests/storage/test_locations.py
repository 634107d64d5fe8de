"""The same contract wherever a run lives: a local disk, fsspec's memory, obstore's memory."""

from __future__ import annotations

import pickle
import sys
import uuid
from datetime import timedelta

import fsspec
import numpy as np
import pytest

import i2am
from i2am.storage.errors import AlreadyExists, DamagedSample, InputError, MissingDependency, NotFound
from i2am.storage.locations.fsspec_location import FsspecLocation
from i2am.storage.locations.local import LocalLocation
from i2am.storage.locations.open import locate
from i2am.storage.locations.whole_file import whole_file
from tests.storage.synthetic import IMAGES, LAYERS, TIMESTEPS, check_values, fill, image, write_run


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "table.parquet"
    with pytest.raises(ZeroDivisionError), whole_file(path) as made:
        made.write_bytes(b"half")
        assert not path.exists()
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    for content in (b"one", b"two"):
        with whole_file(path) as made:
            made.write_bytes(content)
    with pytest.raises(KeyboardInterrupt), whole_file(path):
        raise KeyboardInterrupt  # before anything was written
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


class Contract:
    """Every kind of location passes these."""

    @pytest.fixture
    def url(self):
        raise NotImplementedError

    def test_files(self, url):
        place = locate(url)
        assert place.names("") == []
        assert place.size("a/b") is None
        with pytest.raises(FileNotFoundError):
            place.read("a/b")
        with pytest.raises(FileNotFoundError):
            list(place.stream("a/b"))
        self.prepare(place)
        place.write("a/b", b"0123456789")
        place.write("a/b", b"abcdefghij")
        assert place.read("a/b") == b"".join(place.stream("a/b")) == b"abcdefghij"
        assert place.size("a/b") == 10
        assert place.size("a") is None
        assert place.read_ranges("a/b", [(0, 2), (2, 5), (7, 8), (1, 3)], 10) == [b"ab", b"cde", b"h", b"bc"]
        assert place.write_new("a/b", b"other") is False
        assert place.write_new("a/c", b"new") is True
        assert (place.names("a"), place.names("")[-1]) == (["b", "c"], "a")
        assert sorted(place.files()) == [("a/b", 10), ("a/c", 3)]
        place.remove("a/b")
        place.remove("a/b")
        assert place.names("a") == ["c"]
        assert pickle.loads(pickle.dumps(place)).read("a/c") == b"new"

    def test_ranges_beyond_the_end_are_errors(self, url):
        place = locate(url)
        self.prepare(place)
        place.write("a", b"0123456789")
        with pytest.raises(ValueError, match=r"instead of 12|ends before"):
            place.read_ranges("a", [(8, 12)], 12)

    def prepare(self, place):
        return None

    def test_a_whole_run(self, url):
        run = write_run(url)
        check_values(run)
        assert np.array_equal(run.image("mask", "b"), image("mask", "b", IMAGES["mask"]))
        run.check("a")
        report = i2am.verify(url)
        assert report.ok
        assert report.notes == ()

    def test_several_runs_by_a_pattern(self, url):
        base = url.rsplit("/", 1)[0]
        for sample in "ba":
            write_run(f"{base}/day-{sample}/shard.zarr", [sample])
        runs = i2am.open_runs(f"{base}/day-?/*.zarr")
        assert runs.samples == ("a", "b")
        check_values(pickle.loads(pickle.dumps(runs)))
        with pytest.raises(NotFound, match="no run fits"):
            i2am.open_runs(f"{base}/night-*/shard.zarr")

    def test_resume_and_refusals(self, url):
        with pytest.raises(NotFound):
            i2am.open_run(url)
        with i2am.create_run(url, LAYERS, TIMESTEPS, ["a", "b"], image_shapes=IMAGES) as writer:
            with pytest.raises(RuntimeError), writer.sample("b") as sink:
                fill(sink, LAYERS, [0, 1], IMAGES)
                raise RuntimeError
            with writer.sample("a") as sink:
                fill(sink, LAYERS, range(5), IMAGES)
        with pytest.raises(AlreadyExists):
            i2am.create_run(url, LAYERS, TIMESTEPS, ["a"])
        with i2am.resume_run(url, LAYERS) as writer:
            assert writer.missing == ("b",)
            writer.add_image("extra", (2, 2, 1))
            with pytest.raises(AlreadyExists), writer.sample("a"):
                pass
            with writer.sample("b") as sink:
                fill(sink, LAYERS, range(5), IMAGES)
        check_values(i2am.open_run(url))
        assert i2am.verify(url).ok

    def test_damage(self, url):
        write_run(url, ["a", "b"])
        place = locate(url)
        path = "attention/mid.attn2/query/c.1.0.0.0.0"
        data = bytearray(place.read(path))
        data[5] ^= 8
        place.write(path, bytes(data))
        with pytest.raises(DamagedSample, match=r"sample 'b', layer 'mid.attn2'"):
            i2am.open_run(url).read("mid.attn2", "b")
        place.write(path, bytes(data[:-1]))
        with pytest.raises(DamagedSample, match=r"sample 'b', layer 'mid.attn2'"):
            i2am.open_run(url).read("mid.attn2", "b")
        place.remove(path)
        with pytest.raises(DamagedSample, match="the file is missing"):
            i2am.open_run(url).scores("mid.attn2")[1].compute()
        assert {(p.sample, p.layer) for p in i2am.verify(url).problems} == {("b", "mid.attn2")}
        i2am.open_run(url).read("mid.attn2", "a")

    def test_a_failing_upload_or_rename_leaves_no_sample(self, url, monkeypatch):
        with i2am.create_run(url, LAYERS, TIMESTEPS, ["a"]) as writer:
            before = sorted(locate(url).files())

            def fail(*args, **kwargs):
                raise OSError(28, "No space left on device")

            with monkeypatch.context() as broken:
                for target in (
                    "i2am.storage.writing.staging.os.replace",
                    "i2am.storage.locations.fsspec_location.FsspecLocation.upload",
                    "i2am.storage.locations.object_store.ObjectStoreLocation.upload",
                ):
                    broken.setattr(target, fail)
                with pytest.raises(OSError, match="No space left"), writer.sample("a") as sink:
                    fill(sink, LAYERS, range(5))
            assert sorted(locate(url).files()) == before


class TestLocal(Contract):
    @pytest.fixture
    def url(self, tmp_path):
        return str(tmp_path / "r.zarr")

    def prepare(self, place):
        place.root.mkdir()

    def test_file_urls_and_relative_paths_are_local(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for path in (f"file://{tmp_path}/r.zarr", "r.zarr", tmp_path / "r.zarr", "./x/../r.zarr"):
            place = locate(path)
            assert isinstance(place, LocalLocation)
            assert place.url == str(tmp_path / "r.zarr")


class TestMemory(Contract):
    @pytest.fixture
    def url(self):
        name = uuid.uuid4().hex
        yield f"memory://{name}/r.zarr"
        fsspec.filesystem("memory").rm(f"/{name}", recursive=True) if fsspec.filesystem("memory").exists(
            f"/{name}"
        ) else None


class TestObstore(Contract):
    """What happens where fsspec lacks the protocol's package, as for s3:// without s3fs."""

    @pytest.fixture
    def url(self, monkeypatch):
        pytest.importorskip("obstore")

        def lacking(*args, **kwargs):
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr("fsspec.core.url_to_fs", lacking)
        return f"memory://{uuid.uuid4().hex}/r.zarr"


def test_reading_remote_neighbours_together():
    class Counting:
        def __init__(self):
            self.calls = []

        def cat_file(self, path, start, end):
            self.calls.append((start, end))
            return bytes(range(start, end))

    fs = Counting()
    place = FsspecLocation(fs, "p", "x://p")
    assert place.read_ranges("f", [(0, 4), (4, 6), (8, 9), (9, 10)], 100) == [
        bytes(range(*r)) for r in [(0, 4), (4, 6), (8, 9), (9, 10)]
    ]
    assert fs.calls == [(0, 6), (8, 10)]


def test_unknown_protocols_are_refused():
    with pytest.raises(InputError, match="URL 'nonsense://x'; expected a protocol that fsspec knows"):
        i2am.open_run("nonsense://x")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.fsspec", None)
    with pytest.raises(MissingDependency, match=r"no package for the protocol 's3'; .*install"):
        i2am.open_run("s3://bucket/run.zarr")


class TestS3(Contract):
    @pytest.fixture
    def url(self, bucket):
        return f"{bucket}/{uuid.uuid4().hex}/run.zarr"

    def test_of_many_who_create_an_object_one_does(self, url):
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(8) as threads:
            made = list(threads.map(lambda i: locate(url).write_new("a", bytes([i])), range(8)))
        assert made.count(True) == 1
        assert locate(url).read("a") == bytes([made.index(True)])

    def test_ids_that_need_encoding(self, url):
        run = write_run(url, ["a/b", "é %2F", "..", "con"])
        check_values(run)
        report = i2am.verify(url)
        assert (report.ok, report.notes, report.samples) == (True, (), 4)

    def test_a_whole_bucket_as_a_folder(self, bucket):
        locate(f"{bucket}/top").write("a", b"1")
        assert ("top/a", 1) in list(locate(bucket).files())

    def test_endpoint_and_credentials_as_options(self, url, monkeypatch):
        import os

        options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "key": "k", "secret": "s", "region": "r"}
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name)
        locate(url, options).write("a", b"1")
        assert locate(url, options).read("a") == b"1"

    def test_no_bucket_and_no_server_are_one_line(self, bucket, monkeypatch):
        with pytest.raises(i2am.I2AMError, match="no run at|does not answer as it should"):
            i2am.open_run("s3://nowhere/run.zarr")
        quick = {"max_retries": 1, "retry_timeout": timedelta(seconds=2)}
        monkeypatch.setattr("i2am.storage.locations.object_store.RETRY", quick)
        with pytest.raises(i2am.StoreUnavailable, match="run again"):
            i2am.open_run(f"{bucket}/run.zarr", {"endpoint_url": "http://127.0.0.1:9"})
