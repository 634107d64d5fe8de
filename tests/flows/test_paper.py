"""``i2am paper``: what is done stays, other files are left alone, and the page says what the tables say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from i2am.flows.experiments.paper import experiments
from i2am.flows.experiments.paper.published import SUPERVISED
from i2am.flows.experiments.paper.sections import make_page
from i2am.flows.experiments.refinement import SHIPPED, SHIPPED_TABLES
from i2am.storage.errors import AlreadyExists
from tests.flows.conftest import Outcome

KEYS = ("method", "region", "rule", "direction", "truth", "score")


NUMBERS = ("value", "low", "high")


def detection(rows: dict[tuple[str, ...], tuple[float, float | None, float | None]]) -> pl.DataFrame:
    named = [
        dict(zip((*KEYS, *NUMBERS), (*keys, *numbers), strict=True)) | {"count": 8}
        for keys, numbers in rows.items()
    ]
    schema = {**dict.fromkeys(KEYS, pl.String), **dict.fromkeys(NUMBERS, pl.Float64), "count": pl.Int64}
    return pl.DataFrame(named, schema=schema)


def tables(folder: Path, ours: float = 0.5, blind: float = 0.2, causal: float = 7.5) -> dict[str, str]:
    """Small tables of every experiment, as its command writes them."""
    boxes = {}
    for direction, truth, region in (("g2r", "reference_mask", "mask"), ("r2g", "mask", "reference_mask")):
        for score in ("miou", "miou_found", "ap50", "pointing"):
            boxes["i2am", region, "corrected", direction, truth, score] = (ours, ours - 0.1, ours + 0.1)
            boxes["overall", "", "", direction, truth, score] = (blind, blind - 0.1, blind + 0.1)
            boxes[SUPERVISED, "", "", direction, truth, score] = (0.6, 0.5, 0.7)
    compared = {("i2am - daam", "all", "corrected", "r2g", "mask", "miou"): (0.2, 0.1, 0.3)}
    removed = pl.DataFrame(
        {
            "measure": ["times random", "times random", "change", "change"],
            "rank": ["g2r", "lowest", "g2r<b>", "g2r"], "distance": ["pixels"] * 3 + ["toy"],
            "layer": None, "head": None, "kind": "deletion", "fraction": 0.1,
            "region": ["inside"] * 3 + ["image"],
            "value": [causal, 90.0, 30.0, 0.125], "low": [causal - 1.5, 80.0, 25.0, 0.1],
            "high": [causal + 1.5, 99.0, 35.0, 0.15], "count": 8,
        },
        schema_overrides={"layer": pl.String, "head": pl.Int64},
    )  # fmt: skip
    quality = pl.DataFrame(
        {"direction": [None], "score": ["fid"], "value": [0.3], "low": [None], "high": [None]},
        schema_overrides={"direction": pl.String, "low": pl.Float64, "high": pl.Float64},
    )
    correlations = pl.DataFrame(
        {
            "direction": ["r2g"], "level": ["unified"], "measure": ["imacs"], "score": ["ssim"],
            "statistic": ["spearman"], "over": ["samples"], "value": [0.4], "low": [0.1], "high": [0.7],
        }
    )  # fmt: skip
    own = folder / "quality" / "tables"
    own.mkdir(parents=True)
    correlations.write_parquet(own / "quality_correlations.parquet")
    mark = {"claims": ["R2G: the claim is confirmed."], "features": "toy", "notes": ["a note"]}
    (folder / "quality" / "quality.json").write_text(json.dumps(mark))
    for name, facts in (
        ("detection", {"absent": ["none"]}),
        ("faithfulness", {"mode": "mask", "notes": []}),
    ):
        (folder / name).mkdir()
        (folder / name / f"{name}.json").write_text(json.dumps(facts))
    frames = {
        "detection": detection(boxes), "text_to_image": detection(compared), "quality": quality,
        "faithfulness": removed, "replacement": removed,
    }  # fmt: skip
    found = {}
    for name, frame in frames.items():
        frame.write_parquet(folder / f"{name}.parquet")
        found[name] = str(folder / f"{name}.parquet")
    return found | {name: str(SHIPPED / f"{name}.parquet") for name in SHIPPED_TABLES}


def test_verdicts_follow_the_numbers(tmp_path: Path) -> None:
    clear = make_page(tmp_path, tables(tmp_path))
    words = {section.name: section.verdict for section in clear.sections}
    best = "above the best without supervision (overall: 0.200 [0.100, 0.300])"
    assert words["detection"].count(f"{best}; the supervised detector: 0.600") == 2
    assert "7.5 [6.0, 9.0] times as much as a random tenth: the maps say" in words["faithfulness"]
    assert "in 1 of 1 comparisons" in words["text-to-image"]
    assert [item.value for item in clear.headlines] == ["0.50", "0.50", "7.5×"]
    for name, ours, causal, boxes, removal in (
        ("unclear", 0.25, 1.2, "not clearly apart from the best", "which is not clearly more."),
        ("worse", -0.2, -1.0, "below the best", "which is less: the maps point the other way."),
    ):
        (tmp_path / name).mkdir()
        page = make_page(tmp_path / name, tables(tmp_path / name, ours=ours, causal=causal))
        assert page.sections[0].verdict.count(boxes) == 2
        assert removal in page.sections[-1].verdict


def test_the_page_shows_every_table_and_escapes_names(tmp_path: Path) -> None:
    page = experiments.write_paper_page(tmp_path, make_page(tmp_path, tables(tmp_path))).read_text()
    for words in (
        "0.3225",
        "11.5420",
        "tables/detection.parquet",
        "R2G: the claim is confirmed.",
        "0.40 [0.10, 0.70]",
        "cosine distance of features: toy",
        "0.1250 [0.1000, 0.1500]",
    ):
        assert words in page
    assert "g2r&lt;b&gt;" in page
    assert "g2r<b>" not in page


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Experiments that note that they ran and leave their table; the second fails at its first run."""
    ran: list[str] = []

    def make(name: str) -> Callable[[experiments.Paper], None]:
        def run(paper: experiments.Paper) -> None:
            ran.append(name)
            if name == "quality" and ran.count(name) == 1:
                raise KeyboardInterrupt
            (paper.out / name).mkdir(exist_ok=True)

        return run

    monkeypatch.setattr(experiments, "EXPERIMENTS", {name: make(name) for name in experiments.EXPERIMENTS})
    monkeypatch.setattr(experiments, "gather", lambda paper: {})
    monkeypatch.setattr(experiments, "make_page", lambda out, tables: None)
    monkeypatch.setattr(experiments, "write_paper_page", lambda out, page: out / "index.html")
    return ran


def test_what_is_done_stays(tmp_path: Path, counted: list[str]) -> None:
    arguments: dict[str, Any] = {"samples": 2, "steps": 1}
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / ".capture.yaml.4321.part").touch()  # of a process that was killed
    with pytest.raises(KeyboardInterrupt):
        experiments.make_paper(tmp_path / "p", **arguments)
    experiments.make_paper(tmp_path / "p", **arguments)
    assert counted == ["detection", "quality", "quality", "faithfulness", "replacement"]
    experiments.make_paper(tmp_path / "p", **arguments)
    assert len(counted) == 5
    with pytest.raises(AlreadyExists, match="2 samples and 1 steps; expected 3 samples and 1 steps"):
        experiments.make_paper(tmp_path / "p", samples=3, steps=1)


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path, i2am: Callable[..., Outcome]) -> None:
    (tmp_path / "mine.part").write_text("mine")
    (tmp_path / "capture.yaml").write_text("begun")
    i2am("paper", "--out", tmp_path).refused("holds other files; choose another --out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["capture.yaml", "mine.part"]


@pytest.mark.slow
def test_every_experiment_runs_and_a_second_call_makes_nothing_anew(
    tmp_path: Path, i2am: Callable[..., Outcome]
) -> None:
    first = i2am("paper", "--out", tmp_path / "p", "--samples", 2, "--steps", 2, "--json")
    assert first.status == 0
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "p").glob("*/tables/*.parquet")}
    for table in ("detection", "text_to_image", "quality", "refinement", "faithfulness", "replacement"):
        assert pl.read_parquet(first.json["tables"][table]).height
    assert i2am("paper", "--out", tmp_path / "p", "--samples", 2, "--steps", 2).status == 0
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "p").glob("*/tables/*.parquet")}
