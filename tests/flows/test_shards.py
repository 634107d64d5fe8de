"""Repositories of the `datasets` library and shards of WebDataset as sources of samples."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from i2am.flows.datasets.open import open_samples
from i2am.storage.errors import ConfigError, InputError, NotFound, UnknownName
from tests.flows.test_datasets import picture, settings
from tests.flows.test_manifests import png

SHAPE = np.zeros((12, 8), np.uint8)
SHAPE[2:5] = 255
INPUTS = {"image": "source", "mask_image": "mask", "prompt": "prompt"}


def photo(value: int) -> bytes:
    return png(np.full((12, 8, 3), value, np.uint8))


def table(values: list[int]) -> pl.DataFrame:
    """As the `datasets` library stores rows of images and captions."""
    return pl.DataFrame(
        {
            "image": [{"bytes": photo(value), "path": f"{value}.png"} for value in values],
            "shape": [{"bytes": png(SHAPE), "path": None}] * len(values),
            "caption": [f"photo {value}" for value in values],
            "labels": [[value] for value in values],
        }
    )


def saved(folder: Path, layout: str) -> None:
    if layout == "hub":
        (folder / "data").mkdir(parents=True)
        for number, values in enumerate([[1, 2], [3]]):
            table(values).write_parquet(folder / "data" / f"train-0000{number}-of-00002.parquet")
        table([9]).write_parquet(folder / "data" / "test-00000-of-00001.parquet")
    elif layout == "converted":
        (folder / "default/train").mkdir(parents=True)
        table([1, 2, 3]).write_parquet(folder / "default/train/0000.parquet")
    else:
        place = folder / "train" if layout == "save_to_disk of splits" else folder
        place.mkdir(parents=True)
        names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
        for name, values in zip(names, [[1, 2], [3]], strict=True):
            table(values).write_ipc_stream(place / name)
        (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
        if place != folder:
            (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')


@pytest.mark.parametrize("layout", ["hub", "converted", "save_to_disk", "save_to_disk of splits"])
def test_datasets(tmp_path: Path, layout: str) -> None:
    saved(tmp_path / "d", layout)
    columns = {"source": "image", "mask": "shape", "prompt": "caption"}
    source = {"datasets": {"folder": str(tmp_path / "d"), "columns": columns}}
    found = open_samples(settings(source, inputs=INPUTS, seed=5))
    assert found.ids == ("train-000000", "train-000001", "train-000002")
    assert list(found.seeds.values()) == [5, 6, 7]
    last = found.load("train-000002")
    assert last.texts == {"prompt": "photo 3"}
    assert last.images["source"].getpixel((0, 0)) == (3, 3, 3)
    np.testing.assert_array_equal(np.asarray(last.images["mask"]), SHAPE)
    assert open_samples(settings({**source, "limit": 2}, inputs=INPUTS)).ids == found.ids[:2]


def test_datasets_that_are_not_whole(tmp_path: Path) -> None:
    saved(tmp_path / "d", "hub")
    source: dict[str, Any] = {"folder": str(tmp_path / "d")}
    with pytest.raises(UnknownName, match="column in .*'reference'; .*'caption'.*say in columns: what"):
        open_samples(settings({"datasets": source}))
    with pytest.raises(UnknownName, match="column in .* 'picture'; .*correct columns:"):
        open_samples(settings({"datasets": {**source, "columns": {"reference": "picture"}}}))
    with pytest.raises(NotFound, match="holds no split 'validation'"):
        open_samples(settings({"datasets": {**source, "split": "validation"}}))
    saved(tmp_path / "e", "save_to_disk")
    for state in ("{", "[]", '{"_data_files": [1]}'):
        (tmp_path / "e/state.json").write_text(state)
        with pytest.raises(ConfigError, match="expected what save_to_disk writes"):
            open_samples(settings({"datasets": {"folder": str(tmp_path / "e")}}))
    picture(tmp_path / "secret.png")
    (tmp_path / "e/state.json").write_text('{"_data_files": [{"filename": "../secret.png"}]}')
    with pytest.raises(ConfigError, match="got one outside"):
        open_samples(settings({"datasets": {"folder": str(tmp_path / "e")}}))
    (tmp_path / "e/bad.arrow").write_bytes(b"no table")
    (tmp_path / "e/state.json").write_text('{"_data_files": [{"filename": "bad.arrow"}]}')
    with pytest.raises(ConfigError, match="expected a table with a heading"):
        open_samples(settings({"datasets": {"folder": str(tmp_path / "e")}}))


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def members(key: str, value: int) -> dict[str, bytes]:
    return {
        f"{key}.jpg": photo(value),
        f"{key}.mask.png": png(SHAPE),
        f"{key}.txt": f"photo {value}\n".encode(),
        f"{key}.json": json.dumps({"seed": value, "width": 8, "tags": ["x"]}).encode(),
        f"{key}.cls": b"3",
    }


def test_webdataset(tmp_path: Path) -> None:
    shard(tmp_path / "a-0.tar", members("one/0001", 1) | members("one/0002", 2) | {"readme": b"x"})
    shard(tmp_path / "a-1.tar", members("two/0001", 3))
    source = {"webdataset": {"shards": str(tmp_path / "a-*.tar"), "columns": {"source": "jpg"}}}
    found = open_samples(settings(source, inputs=INPUTS))
    assert dict(found.seeds) == {"one/0001": 1, "one/0002": 2, "two/0001": 3}
    sample = found.load("two/0001")
    assert sample.texts == {"prompt": "photo 3", "width": "8"}
    assert sample.images["source"].getpixel((0, 0)) == (3, 3, 3)
    np.testing.assert_array_equal(np.asarray(sample.images["mask"]), SHAPE)
    assert open_samples(settings({**source, "limit": 1}, inputs=INPUTS)).ids == ("one/0001",)
    caption = {"shards": str(tmp_path / "a-0.tar"), "columns": {"reference": "jpg", "prompt": "width"}}
    assert open_samples(settings({"webdataset": caption})).load("one/0001").texts["prompt"] == "8"


def lying(path: Path) -> Path:
    """A tar whose only member says that it has a gigabyte."""
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 30
    path.write_bytes(info.tobuf() + bytes(1024))
    return path


def wordy(path: Path) -> Path:
    """A tar whose header of a long name says that it has a gigabyte."""
    info = tarfile.TarInfo("././@LongLink")
    info.size, info.type = 1 << 30, tarfile.GNUTYPE_LONGNAME
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    return path


def test_webdataset_that_is_not_whole(tmp_path: Path) -> None:
    def refused(path: Path, words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            open_samples(settings({"webdataset": {"shards": str(path)}}))
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none-*.tar", "do not exist")
    (tmp_path / "text.tar").write_text("no tar" * 200)
    refused(tmp_path / "text.tar", "expected an uncompressed tar file")
    whole = shard(tmp_path / "b.tar", members("a", 1)).read_bytes()
    (tmp_path / "c.tar").write_bytes(gzip.compress(whole))
    refused(tmp_path / "c.tar", "expected an uncompressed tar file")
    (tmp_path / "d.tar").write_bytes(whole[:700])
    refused(tmp_path / "d.tar", "members that are whole|uncompressed tar file|'reference'")
    refused(lying(tmp_path / "e.tar"), "members that are whole; got a.png of 1073741824 bytes")
    refused(wordy(tmp_path / "f.tar"), "expected an uncompressed tar file")
    refused(tmp_path / "b.tar", "extension in .* 'reference'; .*'jpg'.*say in columns: which extension")
    refused(shard(tmp_path / "g.tar", {"a.json": b"{"}), "a.json; expected JSON")
    refused(shard(tmp_path / "h.tar", {"a.txt": b"\xff"}), "uncompressed tar file; got .*decode")
    with tarfile.open(tmp_path / "i.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.reference.png"))
    refused(tmp_path / "i.tar", "each member once")
    link = tarfile.TarInfo("a.reference.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "j.tar", "w") as tar:
        tar.addfile(link)
    refused(tmp_path / "j.tar", "at least one row; got none")
