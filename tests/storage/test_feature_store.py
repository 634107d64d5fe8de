"""The derived store of features: keys, parts, damage, and its place beside the runs."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from i2am.storage.errors import AlreadyExists, NotFound, ShapeMismatch
from i2am.storage.reading.open import open_runs
from i2am.storage.tools.feature_store import FeatureStore, features_beside, image_key, pair_key, rows
from tests.analysis.builders import build, layer

MODEL = "my.module:f@0123abcd"


def values(count, size=4, start=0):
    return np.arange(start, start + count * size, dtype=np.float32).reshape(count, size)


def test_a_key_is_of_the_pixels_and_their_shape():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert image_key(image) == image_key(np.asfortranarray(image)) == image_key(image[:, ::-1][:, ::-1])
    others = [image.reshape(2, 8, 3), image[::-1], image[..., :1]]
    keys = {image_key(other) for other in (image, *others)}
    assert len(keys) == 4
    assert pair_key("a", "b") != pair_key("b", "a")


def test_parts_add_up_and_models_are_apart(tmp_path):
    store = FeatureStore(str(tmp_path / "features"))
    assert store.models() == []
    assert store.read(MODEL) == {}
    store.write(MODEL, ["a", "b"], values(2))
    store.write(MODEL, ["c"], values(1, start=50))
    store.write("other@1", ["a"], values(1, size=7))
    found = FeatureStore(str(tmp_path / "features")).read(MODEL)
    np.testing.assert_array_equal(rows(found, ["c", "a"]), [[50, 51, 52, 53], [0, 1, 2, 3]])
    assert sorted(store.models()) == [MODEL, "other@1"]
    with pytest.raises(ShapeMismatch, match="features of another model; .*got 4 and 7"):
        rows(found | {"d": store.read("other@1")["a"]}, ["a", "d"])


@pytest.mark.parametrize("damage", ["flip", "cut", "rename", "foreign", "named"])
def test_a_part_that_is_not_what_was_written_does_not_count(tmp_path, damage):
    store = FeatureStore(str(tmp_path))
    store.write(MODEL, ["a"], values(1))
    store.write(MODEL, ["b"], values(1, start=9))
    path = next(path for path in tmp_path.rglob("*.npz") if b"a" in np.load(path)["keys"].astype("S"))
    data = path.read_bytes()
    if damage == "flip":
        place = data.index(values(1).tobytes()) + 5
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    elif damage == "cut":
        path.write_bytes(data[:-7])
    elif damage == "rename":
        path.rename(path.with_name(f"{'0' * 64}.npz"))
    elif damage in ("foreign", "named"):
        path.write_bytes(b"not a part")
    if damage == "named":
        path.rename(path.with_name(f"{hashlib.sha256(b'not a part').hexdigest()}.npz"))
    assert list(store.read(MODEL)) == ["b"]
    store.write(MODEL, ["a"], values(1))
    assert sorted(store.read(MODEL)) == ["a", "b"]


def test_a_pattern_of_runs_passes_over_the_features(tmp_path):
    run, _ = build(tmp_path / "one.zarr", [layer()])
    assert features_beside(run) == f"{tmp_path}/features"
    FeatureStore(features_beside(run)).write(MODEL, ["a"], values(1))
    assert [member.name for member in open_runs(f"{tmp_path}/*").members] == ["one.zarr"]
    with pytest.raises(NotFound, match="no run fits"):
        open_runs(f"{tmp_path}/f*")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "notes.txt").write_text("mine")
    with pytest.raises(AlreadyExists, match="features holds something else; .*--store FOLDER"):
        FeatureStore(str(tmp_path / "features")).write(MODEL, ["a"], values(1))
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["notes.txt"]
