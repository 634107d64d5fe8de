"""Every layout that samples come from: what is found, what is left out, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from i2am.flows.config.models import CaptureConfig
from i2am.flows.datasets.coco import first_box
from i2am.flows.datasets.open import open_samples
from i2am.storage.errors import ConfigError, NotFound, ShapeMismatch, UnknownName


def settings(samples: dict[str, Any], **more: Any) -> CaptureConfig:
    factory = {"kind": "factory", "function": "a:b"}
    return CaptureConfig.model_validate({"out": "a.zarr", "pipeline": factory, "samples": samples, **more})


def picture(path: Path, rows: int = 12, columns: int = 8, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (columns, rows), (value, value, value)).save(path)


def hole(path: Path, rows: int = 12, columns: int = 8, inside: int = 255) -> None:
    """A mask whose upper half is inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((rows, columns), np.uint8)
    array[: rows // 2] = inside
    Image.fromarray(array).save(path)


@pytest.fixture
def viton(tmp_path: Path) -> Path:
    root = tmp_path / "viton"
    for person, cloth in (("a", "b"), ("b", "a")):
        picture(root / "test/image" / f"{person}.jpg", value=50)
        picture(root / "test/cloth" / f"{cloth}.jpg", value=200)
        hole(root / "test/cloth-mask" / f"{cloth}.jpg")
        hole(root / "test/agnostic-mask" / f"{person}_mask.png")
        picture(root / "test/agnostic-v3.2" / f"{person}.jpg")
    (root / "test_pairs.txt").write_text("a.jpg b.jpg\nb.jpg a.jpg\n")
    return root


def test_viton_hd(viton: Path) -> None:
    unpaired = open_samples(settings({"viton_hd": {"root": str(viton), "pairing": "unpaired"}}, seed=7))
    assert unpaired.ids == ("a_b", "b_a")
    assert list(unpaired.seeds.values()) == [7, 8]
    sample = unpaired.load("a_b")
    # the folder of dense poses is not there, and so is not asked for
    assert set(sample.images) == {"source", "reference", "mask", "reference_mask", "agnostic"}
    assert sample.images["mask"].mode == sample.images["reference_mask"].mode == "L"
    assert sample.images["source"].getpixel((0, 0))[0] < 100 < sample.images["reference"].getpixel((0, 0))[0]
    picture(viton / "test/unpaired-cloth-warp" / "a.jpg")
    picture(viton / "test/unpaired-cloth-warp" / "b.jpg")
    unpaired = open_samples(settings({"viton_hd": {"root": str(viton), "pairing": "unpaired"}}))
    assert "warped" in unpaired.load("a_b").images
    paired = open_samples(settings({"viton_hd": {"root": str(viton)}}))
    assert paired.ids == ("a_a", "b_b")
    assert "warped" not in paired.load("a_a").images
    small = open_samples(settings({"viton_hd": {"root": str(viton)}, "limit": 1, "size": [6, 4]}))
    assert small.ids == ("a_a",)
    assert {image.size for image in small.load("a_a").images.values()} == {(4, 6)}


def test_viton_hd_that_is_not_whole(viton: Path) -> None:
    wanted = settings({"viton_hd": {"root": str(viton)}})
    (viton / "test/agnostic-mask/b_mask.png").unlink()
    with pytest.raises(NotFound, match=r"sample 'b_b': image .*agnostic-mask/b_mask\.png does not exist"):
        open_samples(wanted)
    (viton / "test_pairs.txt").write_text("a.jpg\n")
    with pytest.raises(ConfigError, match=r"line 1; expected a person and a garment; got a\.jpg"):
        open_samples(wanted)
    (viton / "test_pairs.txt").write_text("../../a.jpg b.jpg\n")
    with pytest.raises(ConfigError, match="expected a path inside"):
        open_samples(wanted)
    (viton / "test_pairs.txt").unlink()
    with pytest.raises(NotFound, match=r"list of pairs .*test_pairs\.txt does not exist"):
        open_samples(wanted)
    with pytest.raises(NotFound, match="VITON-HD folder"):
        open_samples(settings({"viton_hd": {"root": str(viton / "nowhere")}}))


def coco(folder: Path, boxes: dict[int, list[Any]], size: tuple[int, int] = (40, 20)) -> CaptureConfig:
    """Images of 40 x 20 pixels with objects; a configuration that reads them."""
    columns, rows = size
    for number in boxes:
        array = np.indices((rows, columns)).sum(0).astype(np.uint8)
        (folder / "val").mkdir(exist_ok=True)
        Image.fromarray(array).convert("RGB").save(folder / "val" / f"{number}.png")
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": columns, "height": rows, "license": 1} for n in boxes
        ],
        "annotations": [
            {"image_id": n, "bbox": box[:4], "iscrowd": int(len(box) > 4)}
            for n, own in boxes.items()
            for box in own
        ],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return settings({"coco": {"annotations": str(folder / "instances.json"), "images": str(folder / "val")}})


def test_coco_takes_the_first_object_of_the_right_size(tmp_path: Path) -> None:
    boxes = {
        9: [[0, 0, 40, 20], [5, 2, 10, 10], [0, 0, 10, 10]],  # the whole image first, then one of 12.5%
        4: [[0, 0, 10, 10, "crowd"], [1, 1, 2, 2]],
        5: [[0, 0, 8, 10]],  # exactly 10%
        6: [],
    }
    found = open_samples(coco(tmp_path, boxes))
    assert found.ids == ("000000000009", "000000000005")
    assert found.left_out == 2
    images = found.load("000000000009").images
    mask = np.asarray(images["mask"])
    assert set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(np.argwhere(mask).min(0), (2, 5))
    np.testing.assert_array_equal(np.argwhere(mask).max(0), (11, 14))
    np.testing.assert_array_equal(
        np.asarray(images["reference"])[..., 0], np.indices((20, 40)).sum(0)[2:12, 5:15]
    )


@given(st.data())
def test_coco_boxes_against_a_literal_reading(data: Any) -> None:
    width, height = data.draw(st.integers(10, 60)), data.draw(st.integers(10, 60))
    objects = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, 8), st.integers(0, 8), st.integers(1, 60), st.integers(1, 60), st.booleans()
            ),
            max_size=5,
        )
    )
    annotations = [{"bbox": list(o[:4]), "iscrowd": o[4]} for o in objects]
    expected = None
    for left, top, across, down, crowd in objects:
        if not crowd and expected is None and 0.1 <= across * down / (width * height) <= 0.3:
            expected = (left, top, min(left + across, width), min(top + down, height))
    assert first_box({"width": width, "height": height}, annotations, 0.1, 0.3) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "expected COCO's images"),
        ("[]", "expected COCO's images"),
        ('{"images": [], "annotations": [{"bbox": [1]}]}', "a bbox has four numbers"),
        ('{"images": [], "annotations": [{"bbox": [0, 0, NaN, 1]}]}', "a bbox has four numbers"),
        (
            '{"images": [{"id": 1, "file_name": "1.png", "width": 0, "height": 9}], "annotations": []}',
            "width",
        ),
        ('{"images": [], "annotations": []}', "expected at least one row; got none"),
    ],
)
def test_coco_that_is_not_whole(tmp_path: Path, content: str, words: str) -> None:
    wanted = coco(tmp_path, {1: [[0, 0, 10, 10]]})
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        open_samples(wanted)


@pytest.mark.parametrize("box", [[90, 90, 10, 10], [20, 15, -10, -10], [0.2, 0, 0.3, 300]])
def test_coco_boxes_without_a_pixel_are_passed_over(box: list[float]) -> None:
    image = {"width": 40, "height": 20}
    objects = [{"bbox": box}, {"bbox": [1, 2, 10, 10]}]
    assert first_box(image, objects[:1], 0.1, 0.3) is None
    assert first_box(image, objects, 0.1, 0.3) == (1, 2, 11, 12)


def test_a_picture_that_is_gone_or_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "lr" / "a.png"
    picture(path)
    found = open_samples(settings({"low_resolution": {"folder": str(path.parent)}}))
    whole = path.read_bytes()
    for length in (4, 20, 40):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"a\.png; expected a picture that PIL reads"):
            found.load("a")
    path.unlink()
    with pytest.raises(NotFound, match=r"a\.png does not exist"):
        found.load("a")


def test_coco_images_of_another_size(tmp_path: Path) -> None:
    found = open_samples(coco(tmp_path, {1: [[0, 0, 10, 10]]}))
    picture(tmp_path / "val" / "1.png")
    with pytest.raises(ShapeMismatch, match="as annotated; got 8×12"):
        found.load("000000000001")


def test_low_resolution(tmp_path: Path) -> None:
    picture(tmp_path / "lr" / "b.png", 10, 13)
    picture(tmp_path / "lr" / "a.jpg", 10, 13)
    (tmp_path / "lr" / "b.txt").write_text("a brick wall\n")
    found = open_samples(settings({"low_resolution": {"folder": str(tmp_path / "lr"), "scale": 2}}))
    assert found.ids == ("a", "b")
    sample = found.load("b")
    assert sample.texts == {"prompt": "a brick wall"}
    assert found.load("a").texts == {"prompt": ""}
    assert sample.images["source"].size == sample.images["reference"].size == (24, 16)  # multiples of 8
    wanted = {"low_resolution": {"folder": str(tmp_path / "lr")}, "size": [32, 48]}
    assert open_samples(settings(wanted)).load("a").images["source"].size == (48, 32)
    picture(tmp_path / "lr" / "a.png")
    with pytest.raises(ConfigError, match="each id once; got 'a' more than once"):
        open_samples(settings({"low_resolution": {"folder": str(tmp_path / "lr")}}))


@pytest.mark.parametrize("write", [pl.DataFrame.write_csv, pl.DataFrame.write_parquet])
def test_a_manifest_with_prompts(tmp_path: Path, write: Callable[..., Any]) -> None:
    picture(tmp_path / "r.png")
    table = pl.DataFrame({"id": ["1", "2"], "reference": ["r.png"] * 2, "prompt": ["a cat", None]})
    path = tmp_path / ("m.csv" if write is pl.DataFrame.write_csv else "m.parquet")
    write(table, path)
    inputs = {"image": "reference"}
    found = open_samples(settings({"manifest": str(path)}, inputs=inputs))
    assert found.load("1").texts == {"prompt": "a cat"}
    assert found.load("2").texts == {}
    found = open_samples(settings({"manifest": str(path)}, inputs={**inputs, "prompt": "prompt"}))
    assert [found.load(id).texts for id in "12"] == [{"prompt": "a cat"}, {"prompt": ""}]
    with pytest.raises(UnknownName, match="add a column 'caption'"):
        open_samples(settings({"manifest": str(path)}, inputs={**inputs, "prompt": "caption"}))
