"""Three references of one sample, from a table to figures: each is captured, asked about and drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from i2am.storage.reading.open import open_run
from tests.flows.test_datasets import picture

NAMES = ("reference", "reference-1", "reference-2")


@pytest.fixture
def file(config: Callable[..., Path], tmp_path: Path) -> Path:
    row: dict[str, Any] = {"id": "a", "reference-1_mask": "mask.png"}
    for number, name in enumerate(NAMES):
        row[name] = f"{name}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (64 + 16 * number, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / row[name])
    mask = np.zeros((80, 64), np.uint8)
    mask[:40, :32] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    pl.DataFrame([row]).write_csv(tmp_path / "table.csv")
    return config(
        pipeline={"kind": "factory", "function": "tests.flows.tiny_systems:flux2"},
        samples={"manifest": "table.csv"}, inputs={"image": list(NAMES)}, text=True,
        representation="factors",
    )  # fmt: skip


def test_from_a_table_to_figures(file: Path, tmp_path: Path, i2am: Callable[..., Any]) -> None:
    assert i2am("capture", file, "--quiet").status == 0
    run = open_run(tmp_path / "tiny.zarr")
    grids = {spec.reference: spec.ref_grid for spec in run.layers.values()}
    assert grids == {"reference": (8, 8), "reference-1": (10, 8), "reference-2": (12, 8), "text": (0, 0)}
    assert sum(not spec.query_of for spec in run.layers.values()) == len(run.layers) / 4
    assert {*NAMES, "reference-1_mask", "generated"} <= set(run.images)

    told = i2am(
        "analyze", run.path, "--reference", "reference-1", "--out", tmp_path / "study", "--quiet", "--json"
    )
    assert told.status == 0
    assert "text: ask for it with reference='text'" in told.json["absent"]
    scored = pl.read_parquet(tmp_path / "study" / "tables" / "unified.parquet").filter(direction="g2r")
    assert scored["imacs"].is_not_null().all()  # against the mask of that reference
    own = i2am("imacs", run.path, "--direction", "g2r", "--reference", "reference-1", "--json").json["scores"]
    assert own[0]["imacs"] == pytest.approx(scored["imacs"][0])

    assert i2am("maps", run.path, "--reference", "all", "--out", tmp_path / "all.png").status == 0
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.size[0] > 1000
    maps = ["maps", run.path, "--out", tmp_path / "no.png"]
    i2am(*maps, "--reference", "all", "--level", "head").refused(
        "--reference all; .*; got --level; ask for one"
    )
    i2am(*maps, "--reference", "reference-3").refused("unknown reference 'reference-3'.*'reference-2'")
    i2am(*maps, "--layer", "*reference-2").refused("ask with reference='reference-2', or --reference")
    assert i2am(*maps, "--reference", "text", "--at", "tokens 0,3", "--method", "joint").status == 0
    assert not (tmp_path / "no.npz").exists()


def test_a_list_of_images_is_no_batch(
    file: Path, config: Callable[..., Path], tmp_path: Path, i2am: Any
) -> None:
    settings = {"kind": "factory", "function": "tests.flows.tiny_systems:flux2"}
    for number in range(2):
        picture(tmp_path / f"{number}.png", value=number)
    table = pl.DataFrame({"id": ["a", "b"], "reference": ["0.png", "1.png"]})
    table.write_csv(tmp_path / "two.csv")
    for inputs in ({"image": "reference"}, {"image": ["reference", "reference"]}):
        file = config(pipeline=settings, samples={"manifest": "two.csv"}, inputs=inputs, batch_size=2)
        i2am("capture", file).refused("batch_size; expected 1: the pipeline takes a list of images")
    assert not (tmp_path / "tiny.zarr").exists()
