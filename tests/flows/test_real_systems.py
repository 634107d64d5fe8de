"""The commands of docs/experiments.md for the paper's systems and an IP-Adapter, on small random models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from i2am.analysis.experiments import detection_scores
from tests.flows.conftest import Outcome
from tests.flows.real_systems import COMMANDS, coco, small_example, viton_hd

I2am = Callable[..., Outcome]
COLOURS = ("--features", "tests.pipeline.feature_functions:colours", "--no-lpips")
RANKS = {"g2r", "official", "daam"}
QUICK = f"--limit 1 --rank {','.join(sorted(RANKS))} --fractions 0.5 --blocks 1".split()
ONE_TOKEN = "the reference is one pooled token, which is removed as a whole"
UNPLACED = {"paint-by-example-ldm": ONE_TOKEN, "dci-vton": ONE_TOKEN}
"""Systems whose tokens have no place, and what `ablate` says of them."""
MASKED = {"paint-by-example-ldm", "dci-vton", "stableviton", "ip-adapter-inpaint"}
OF_SEVERAL_GRIDS = {"stableviton": {"daam"}, "pasd": {"daam", "official"}}
"""Ranks that a system's layers of different grids have no answer to."""
OF_TILES = {"official"}
"""What tiles have no answer to."""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with both data sets."""
    data = tmp_path / "examples" / "data"
    data.mkdir(parents=True)
    coco(data)
    viton_hd(data / "zalando-hd-resized")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detection_scores, "RESAMPLES", 20)  # half the time of a detection
    return tmp_path


@pytest.mark.parametrize("system", COMMANDS)
def test_every_documented_command(desk: Path, i2am: I2am, system: str) -> None:
    small_example(desk, system)
    run_all(desk, i2am, system, system, UNPLACED.get(system))


COCO = {"coco": {"annotations": "data/annotations/instances_val2017.json", "images": "data/val2017"}}
PLUS = {
    "kind": "factory",
    "function": "tests.flows.tiny_systems:of_example",
    "arguments": {"system": "ip-adapter-plus"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "as_documented", "changes", "unplaced"),
    [
        ("paint-by-example", "paint-by-example-ldm", {"samples": COCO | {"size": [32, 32]}}, ONE_TOKEN),
        ("pasd-light", "pasd", {}, None),
        ("pasd", "pasd", {"call": {"tile_size": 16}}, None),
        ("seesr", "seesr", {"call": {"tile_size": 16}}, None),
        ("stableviton", "stableviton", {"layers": None}, None),
        ("ip-adapter-inpaint", "ip-adapter-inpaint", {"pipeline": PLUS}, "6 tokens without a place"),
    ],
)
def test_variants(
    desk: Path, i2am: I2am, system: str, as_documented: str, changes: dict[str, Any], unplaced: str | None
) -> None:
    small_example(desk, system, **changes)
    run_all(desk, i2am, system, as_documented, unplaced)


def run_all(desk: Path, i2am: I2am, system: str, as_documented: str, unplaced: str | None) -> None:
    """Run the commands of the page on a configuration, and look at what they write."""

    def run(*words: str) -> Outcome:
        outcome = i2am(*words, "--quiet")
        assert outcome.status == 0, (words, outcome.err)
        return outcome

    typed = {
        command: [word.replace(as_documented, system) for word in words]
        for command, words in COMMANDS[as_documented].items()
    }
    assert set(typed) == {"capture", "detect", "quality", "ablate"}
    out = desk / "out" / system
    tiled = "tile_size" in (desk / typed["capture"][1]).read_text()
    without = OF_TILES if tiled else set()
    ranks = RANKS - OF_SEVERAL_GRIDS.get(as_documented, set()) - without
    run(*typed["capture"])
    run(*typed["detect"])
    check_detection(out / "detection", as_documented, without)
    run(*typed["quality"], *COLOURS)
    check_quality(out / "quality", as_documented, unplaced)
    ablated = run(*typed["ablate"], *QUICK)
    check_ablation(out / "ablation", as_documented in MASKED, {"whole"} if unplaced else ranks)
    if unplaced:
        assert len(ablated.err.splitlines()) == 1
        assert unplaced in ablated.err
        assert "mean absolute change inside the mask, 0 to 255, without the reference: " in ablated.out
    for kind in ("detection", "quality", "ablation"):
        run("verify", str(out / kind))
    if not unplaced and as_documented != "stableviton":  # whose masks are of both images
        check_both_directions(desk, system, run)


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    return {file.stem: pl.read_parquet(file) for file in (folder / "tables").glob("*.parquet")}


def check_detection(folder: Path, system: str, without: set[str]) -> None:
    found = tables(folder)["detection"].filter(score="miou")
    assert (found["count"] == 2).all()
    assert found["value"].is_finite().all()
    assert {"i2am", "daam", "overall"} <= set(found["method"].to_list())
    own = set(found.filter(method="i2am").select("direction", "rule").iter_rows())
    rules = ("corrected",) if "official" in without else ("official", "corrected")
    ways = ("r2g", "g2r") if system == "stableviton" else ("r2g",)  # the others: no map, or no truth
    assert own == {(way, rule) for way in ways for rule in rules}
    assert len(list((folder / "pictures").iterdir())) == 3  # of each sample, and beside DAAM


def check_both_directions(desk: Path, system: str, run: Callable[..., Outcome]) -> None:
    """With boxes of both images from a file, each way has its rows."""
    samples = pl.read_parquet(desk / "out" / system / "detection" / "tables" / "detection_boxes.parquet")
    rows = [
        {"sample": sample, "direction": way, "x": 2, "y": 3, "width": 8, "height": 9}
        for sample in samples["sample"].unique()
        for way in ("r2g", "g2r")
    ]
    pl.DataFrame(rows).write_parquet(desk / "boxes.parquet")
    out = f"out/{system}/both"
    run("detect", f"out/{system}.zarr", "--out", out, "--truth", "boxes.parquet", "--pictures", "0")
    found = tables(desk / out)["detection"].filter(method="i2am", rule="corrected", score="miou")
    assert set(found["direction"]) == {"r2g", "g2r"}


def check_quality(folder: Path, system: str, unplaced: str | None) -> None:
    found = tables(folder)
    images = found["quality"].filter(pl.col("level").is_null())
    scores = dict(zip(images["score"], images["value"], strict=True))
    assert all(isinstance(scores[name], float) for name in ("fid", "kid", "ssim", "psnr", "similarity"))
    attention = found["quality_attention"]
    assert set(attention["direction"]) == ({"r2g"} if unplaced else {"r2g", "g2r"})
    numbers = attention.filter(direction="r2g")["imacs"]
    assert numbers.is_not_null().all() if system in MASKED else numbers.is_null().all()


def check_ablation(folder: Path, masked: bool, ranks: set[str]) -> None:
    found = tables(folder)
    summary, patches = found["faithfulness"], found["faithfulness_patches"]
    assert ("outside" in summary["region"]) == masked
    gone = summary.filter(measure="change", kind="deletion", fraction=1, region="inside")
    assert set(gone["rank"]) == ranks
    assert (gone["value"] > 0).all()
    assert gone["value"].n_unique() == 1
    predictors = {"r2g", "contribution"} if ranks == {"whole"} else {"r2g", "daam", "r2g-all"}
    assert set(patches["predictor"]) == predictors
    assert patches["correlation"].is_not_null().any()
