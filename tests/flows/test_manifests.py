"""Manifests as people write them: cells of any type, pictures in the table, marks, masks of every kind."""

from __future__ import annotations

import io
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from i2am.flows.datasets.open import open_samples
from i2am.storage.errors import ConfigError, ShapeMismatch
from tests.flows.test_datasets import coco, hole, picture, settings


def png(array: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_in_the_table(tmp_path: Path) -> None:
    """Image structs of the `datasets` library: bytes, or the path of a file; or bytes alone."""
    picture(tmp_path / "r.png", value=7)
    red, shape = np.zeros((12, 8, 3), np.uint8), np.zeros((12, 8), np.uint8)
    red[..., 0], shape[:6] = 250, 1
    table = pl.DataFrame(
        {
            "id": [10, 11, 12],
            "reference": [{"bytes": png(red), "path": None}, {"bytes": None, "path": "r.png"}, None],
            "mask": [png(shape), None, None],
        }
    )
    table.write_parquet(tmp_path / "m.parquet")
    found = open_samples(settings({"manifest": str(tmp_path / "m.parquet"), "limit": 2}))
    assert found.ids == ("10", "11")
    images = found.load("10").images
    np.testing.assert_array_equal(np.asarray(images["reference"]), red)
    np.testing.assert_array_equal(np.asarray(images["mask"]), shape * 255)
    assert found.load("11").images["reference"].getpixel((0, 0)) == (7, 7, 7)
    inputs = {"image": "reference"}
    with pytest.raises(ConfigError, match="sample '12'; expected an image in column 'reference'"):
        open_samples(settings({"manifest": str(tmp_path / "m.parquet")}, inputs=inputs))
    table.with_columns(mask=pl.lit(b"no picture")).write_parquet(tmp_path / "n.parquet")
    broken = open_samples(settings({"manifest": str(tmp_path / "n.parquet"), "limit": 1}))
    with pytest.raises(ConfigError, match="column 'mask', row 0: image 'mask'; expected a picture"):
        broken.load("10")


UNUSED: dict[str, Any] = {
    "list": [[1, 2], [3]],
    "struct": [{"a": 1}, {"a": 2}],
    "duration": [timedelta(1), None],
    "infinity": [float("inf"), 1.0],
    "nested": [[{"a": [1]}], []],
    "decimal": [Decimal("1.5"), None],
    "time": [time(1, 2), None],
    "null": [None, None],
    "bytes": [b"x", None],
    "date": [date(2020, 1, 2), None],
}


def test_a_column_that_is_not_used_may_have_any_type(tmp_path: Path) -> None:
    picture(tmp_path / "r.png")
    table = pl.DataFrame({"id": ["a", "b"], "reference": ["r.png"] * 2, **UNUSED})
    table = table.with_columns(kind=pl.Series(["x", "y"], dtype=pl.Categorical))
    table.write_parquet(tmp_path / "m.parquet")
    texts = open_samples(settings({"manifest": str(tmp_path / "m.parquet")})).load("a").texts
    expected = {"infinity": "inf", "date": "2020-01-02", "kind": "x"}
    assert texts == {**expected, "decimal": texts["decimal"], "time": texts["time"]}
    for column in ("list", "struct", "duration", "bytes"):
        inputs = {"image": "reference", "prompt": column}
        with pytest.raises(ConfigError, match=f"sample 'a': {column}; expected a text; got"):
            open_samples(settings({"manifest": str(tmp_path / "m.parquet")}, inputs=inputs))


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("id", [None, "b"], "row 1: id; expected a text or an integer; got an empty cell"),
        ("id", [1.0, 2.0], "row 1: id; expected a text or an integer; got 1.0"),
        ("id", [True, False], "row 1: id; expected a text or an integer; got True"),
        ("id", [["a"], ["b"]], "row 1: id; expected a text or an integer; got List"),
        ("reference", [3, 4], "reference; expected an image's path or bytes; got 3"),
        ("reference", [["r.png"]] * 2, "reference; expected an image's path or bytes; got List"),
        ("seed", [1.5, 2.0], "seed; expected an integer from 0"),
        ("seed", [True, False], "seed; expected an integer from 0"),
        ("seed", [[1], [2]], "seed; expected an integer from 0"),
    ],
)
def test_cells_that_would_be_read_as_something_else(
    tmp_path: Path, column: str, values: list[Any], words: str
) -> None:
    picture(tmp_path / "r.png")
    cells: dict[str, Any] = {"id": ["a", "b"], "reference": ["r.png"] * 2, column: values}
    pl.DataFrame(cells).write_parquet(tmp_path / "m.parquet")
    with pytest.raises(ConfigError, match=words):
        open_samples(settings({"manifest": str(tmp_path / "m.parquet")}, inputs={"image": "reference"}))


def test_a_byte_order_mark_in_every_text(tmp_path: Path) -> None:
    mark = "\ufeff".encode()
    wanted = coco(tmp_path, {1: [[0, 0, 10, 10]]})
    path = tmp_path / "instances.json"
    path.write_bytes(mark + path.read_bytes())
    assert open_samples(wanted).ids == ("000000000001",)
    picture(tmp_path / "lr" / "a.png")
    (tmp_path / "lr" / "a.txt").write_bytes(mark + b"a cat")
    low = open_samples(settings({"low_resolution": {"folder": str(tmp_path / "lr")}}))
    assert low.load("a").texts == {"prompt": "a cat"}
    for name in ("image", "cloth"):
        picture(tmp_path / "test" / name / "a.png")
    hole(tmp_path / "test" / "agnostic-mask" / "a_mask.png")
    (tmp_path / "test_pairs.txt").write_bytes(mark + b"a.png a.png\n")
    assert open_samples(settings({"viton_hd": {"root": str(tmp_path)}})).ids == ("a_a",)


def test_masks_are_looked_into_when_samples_are_listed(tmp_path: Path) -> None:
    """Empty, full, of another size; a mask of 0 and 1 is whole."""
    picture(tmp_path / "s.png")
    hole(tmp_path / "ones.png", inside=1)
    hole(tmp_path / "labels.png", inside=2)
    hole(tmp_path / "small.png", 6, 4)
    picture(tmp_path / "full.png", value=255)

    def listed(**images: str) -> Any:
        row = {"id": "a", "source": "s.png", "reference": "s.png", **images}
        pl.DataFrame([row]).write_csv(tmp_path / "m.csv")
        return open_samples(settings({"manifest": str(tmp_path / "m.csv")}))

    mask = np.asarray(listed(mask="ones.png").load("a").images["mask"])
    assert np.unique(mask).tolist() == [0, 255]
    for name in ("mask", "reference_mask"):
        with pytest.raises(ShapeMismatch, match="a mask that is empty; .* got values from 0 to 2"):
            listed(**{name: "labels.png"})
        with pytest.raises(ShapeMismatch, match="a mask that is full; .* got values from 255 to 255"):
            listed(**{name: "full.png"})
        with pytest.raises(ShapeMismatch, match=f"{name}; expected the .*size, 8×12 pixels; got 4×6"):
            listed(**{name: "small.png"})
