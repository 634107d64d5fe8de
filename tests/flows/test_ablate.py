"""``i2am ablate``: a planted token that alone is causal, resumption, other families, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from i2am.flows.capture.job import run_capture
from i2am.flows.config.load_yaml import load_capture
from i2am.flows.experiments.ablate import ablate_run
from i2am.flows.experiments.removals import Effect, Generator
from i2am.pipeline.features.contract import FeatureModel
from tests.flows.conftest import Outcome
from tests.flows.tiny_systems import PLANTED
from tests.pipeline.feature_functions import colours

I2am = Callable[..., Outcome]
SYSTEMS = "tests.flows.tiny_systems"
QUICK = ("--rank", "g2r,random,lowest", "--fractions", "0.1", "--draws", "1", "--blocks", "2", "--quiet")


def alike(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """Equal rows; a correlation's last digit depends on where its numbers lie in memory."""
    frames = (pl.DataFrame(rows, infer_schema_length=None) for rows in (one, other))
    assert_frame_equal(*frames, rel_tol=1e-12, abs_tol=1e-12)


def factory(name: str) -> dict[str, str]:
    return {"kind": "factory", "function": f"{SYSTEMS}:{name}"}


@pytest.fixture
def planted(config: Callable[..., Path]) -> Path:
    """The configuration of a captured run of two scenes, one token of whose references is causal."""
    file = config(pipeline=factory("planted"), batch_size=8)
    run_capture(load_capture(file))
    return file


def test_a_planted_token_is_found_and_is_all_that_counts(planted: Path, i2am: I2am, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["ablate", planted, "--run", tmp_path / "tiny.zarr", "--out", out, "--fractions", "0.004,0.9"]
    words += ["--draws", "1", "--blocks", "2"]
    outcome = i2am(*words, "--json")
    assert outcome.status == 0, outcome.err
    samples = pl.read_parquet(out / "tables" / "faithfulness_samples.parquet")
    assert samples["outside"].abs().max() == 0  # the painter keeps the scene
    for scene in samples["sample"].unique():
        own = samples.filter(sample=scene)
        whole = own.filter(kind="deletion", fraction=1)["inside"].to_list()
        assert len(set(whole)) == 1
        assert whole[0] > 1
        for rank in ("g2r", "g2r-painted", "daam"):
            curve = own.filter(rank=rank, kind="deletion").sort("fraction")["inside"].to_list()
            assert curve == [0, *[whole[0]] * 3]  # one of 256 tokens, and everything is gone
            left = own.filter(rank=rank, kind="insertion").sort("fraction")["inside"].to_list()
            assert left == [whole[0], 0, 0, 0]
        lowest = own.filter(rank="lowest", kind="deletion").sort("fraction")["inside"].to_list()
        assert lowest == [0, 0, 0, whole[0]]
        assert set(own["inside"].to_list()) == {0.0, whole[0]}
    patches = pl.read_parquet(out / "tables" / "faithfulness_patches.parquet")
    block = (PLANTED[0] // 8, PLANTED[1] // 8)
    for row in patches.iter_rows(named=True):
        causal = (row["row"], row["column"]) == block
        assert (row["change"] > 0) == causal
        assert causal or row["correlation"] is None
    for name in ("faithfulness", "faithfulness-layers"):
        assert (out / "pictures" / f"{name}.png").is_file()
    assert i2am("verify", out).status == 0
    summary = pl.DataFrame(outcome.json["summary"], infer_schema_length=None)
    area = summary.filter(measure="area", region="inside", kind="deletion")
    assert area.filter(rank="g2r")["value"].item() > 1.5 * area.filter(rank="random")["value"].item()
    again = i2am(*words, "--json").json
    assert again["generated"] == 0
    alike(again["summary"], outcome.json["summary"])


def test_an_interrupted_experiment_goes_on(
    planted: Path, i2am: I2am, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["ablate", planted, "--run", tmp_path / "tiny.zarr", "--json", *QUICK]
    whole = i2am(*words, "--out", tmp_path / "whole").json
    generate = Generator._generate
    calls: list[int] = []

    def interrupted(self: Generator, sample: str, removed: list[np.ndarray]) -> list[np.ndarray]:
        calls.append(len(removed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(self, sample, removed)

    monkeypatch.setattr(Generator, "_generate", interrupted)
    assert i2am(*words, "--out", tmp_path / "out").status == 130
    assert not (tmp_path / "out" / "tables").exists()
    monkeypatch.undo()
    rest = i2am(*words, "--out", tmp_path / "out").json
    assert rest["generated"] == whole["generated"] // 2 - 8  # one scene was whole, and a batch of the other
    alike(rest["summary"], whole["summary"])
    more = i2am(*words, "--out", tmp_path / "out", "--fractions", "0.1,0.3", "--limit", "1").json
    assert 0 < more["generated"] <= 6


COLOURS = "tests.pipeline.feature_functions:colours"


def lpips_of_sums(device: str) -> FeatureModel:
    """In place of LPIPS, whose weights are not here: the mean squared difference of two images."""

    def extract(pairs: np.ndarray) -> np.ndarray:
        return ((pairs[:, 0].astype(float) - pairs[:, 1]) ** 2).mean((1, 2, 3))[:, None]

    return FeatureModel("lpips", "of-sums", extract)


def test_the_change_of_features_and_lpips_beside_pixels(
    planted: Path, i2am: I2am, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("i2am.pipeline.features.lpips.load_lpips", lpips_of_sums)
    images: list[np.ndarray] = []
    generate = Generator._generate

    def kept(self: Generator, sample: str, removed: list[np.ndarray]) -> list[np.ndarray]:
        images.extend(made := generate(self, sample, removed))
        return made

    monkeypatch.setattr(Generator, "_generate", kept)
    words = [
        "ablate",
        planted,
        "--run",
        tmp_path / "tiny.zarr",
        "--out",
        tmp_path / "out",
        *QUICK,
        "--limit",
        "1",
    ]
    more = [*words, "--features", COLOURS, "--lpips"]
    pixels = i2am(*words, "--json").json
    found = i2am(*more, "--json").json
    # Images are not kept, so these are made once more; what blocks change is measured in pixels alone.
    assert found["generated"] == pixels["generated"] - 4
    once_more = i2am(*words, "--json").json
    alike(once_more["summary"], pixels["summary"])
    assert once_more == pixels | {"generated": 0, "seconds": ANY, "summary": ANY}
    summary = pl.DataFrame(found["summary"], infer_schema_length=None)
    alike(summary.filter(distance="pixels").to_dicts(), pixels["summary"])
    own = summary.filter(pl.col("distance") != "pixels")
    assert set(own["distance"]) == {COLOURS, "lpips"}
    assert set(own["region"]) == {"image"}
    assert set(own["measure"]) == {"change", "area", "times random"}
    told = i2am(*more).out
    assert f"cosine distance of features: {COLOURS}, over all shares" in told
    assert "LPIPS, over all shares" in told
    assert "0 images generated" in told
    assert told.count("rank correlation") == 1
    table = pl.read_parquet(tmp_path / "out" / "tables" / "faithfulness_samples.parquet")
    original = images[0]
    changed = next(image for image in images if (image != original).any())  # without the planted token
    one, other = colours(np.stack([original, changed]))
    cosine = 1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    squares = ((original.astype(float) - changed) ** 2).mean()
    for row in table.filter(kind="deletion", fraction=1).iter_rows(named=True):
        assert row["feature_distance"] == pytest.approx(cosine, abs=1e-6)
        assert row["lpips"] == pytest.approx(squares, rel=1e-6)
    same = table.filter(inside=0)
    assert same.height > 2
    assert same.select("feature_distance", "lpips").max().row(0) == pytest.approx((0, 0), abs=1e-6)
    assert set(table["features"]) == {COLOURS}
    for ending in ("", "-features", "-lpips"):
        assert (tmp_path / "out" / "pictures" / f"faithfulness{ending}.png").is_file()


def test_what_an_older_measurement_alone_has_is_kept() -> None:
    older = Effect(1.0, 2.0, np.ones((2, 3)), {"clip@1": 0.25, "dino@1": None})
    found = Effect(1.0, 2.0, None, {"lpips@1": 0.5, "dino@1": 0.75}).beside(older)
    assert found.cells is older.cells
    assert found.distances == {"clip@1": 0.25, "dino@1": 0.75, "lpips@1": 0.5}
    assert Effect(3.0, None).beside(None) == Effect(3.0, None)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--features", "inception"], "no weights of Inception at .*download https"),
        (["--features", "dino", "--weights", "nowhere"], "no folder nowhere"),
        (["--features", "incepton"], "unknown features 'incepton'"),
        (["--weights", "nowhere"], "weights; expected features that they belong to.*--features"),
        (["--lpips"], "LPIPS needs torchvision|no AlexNet weights"),
    ],
)
def test_missing_weights_are_refused_before_anything_is_generated(
    planted: Path, i2am: I2am, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(Generator, "_generate", None)
    out = tmp_path / "out"
    i2am("ablate", planted, "--run", tmp_path / "tiny.zarr", "--out", out, *QUICK, *more).refused(what)
    assert not out.exists()


def test_joint_attention(config: Callable[..., Path], tmp_path: Path) -> None:
    """All other families are in test_real_systems.py."""
    more = {
        "inputs": {"image": "source"},
        "call": {"num_inference_steps": 2},
        "samples": {"scenes": {"count": 1}},
    }
    settings = load_capture(config(pipeline=factory("flux_kontext"), **more))
    run_capture(settings)
    asked: dict[str, Any] = {"ranks": ["g2r", "lowest"], "fractions": [0.5], "blocks": 0}
    found = ablate_run(settings, settings.out, tmp_path / "out", **asked)
    changes = found.samples.filter(fraction=1, kind="deletion")["inside"]
    assert changes.n_unique() == 1
    assert changes[0] > 0
    assert found.samples.filter(fraction=0, kind="deletion")["inside"].to_list() == [0, 0]


def captured_adapters(config: Callable[..., Path], **arguments: Any) -> Path:
    """The configuration of a captured run of IP-Adapters."""
    pipeline = factory("ip_adapter") | {"arguments": arguments}
    steps = {"num_inference_steps": 2}
    file = config(pipeline=pipeline, inputs={}, call=steps, samples={"scenes": {"count": 1}})
    run_capture(load_capture(file))
    return file


def test_one_of_several_references_is_ablated(
    config: Callable[..., Path], i2am: I2am, tmp_path: Path
) -> None:
    """The second of these counts for nothing, so removing it changes nothing."""
    file = captured_adapters(config, kinds=["full", "full"], scales=[0.8, 1e-12])
    words = ["ablate", file, "--run", tmp_path / "tiny.zarr", "--out", tmp_path / "out", "--fractions", "0.5"]
    words += ["--rank", "g2r,norm,daam,official", "--blocks", "1", "--quiet"]
    i2am(*words).refused("reference; expected one of reference, reference-1; got none; .*--reference NAME")
    i2am(*words, "--reference", "reference-2").refused("unknown reference 'reference-2'.*'reference-1'")
    assert not (tmp_path / "out").exists()
    tables = []
    for number in (0, 1):
        name = f"reference-{number}" if number else "reference"
        outcome = i2am(*words, "--reference", name)
        assert outcome.status == 0, outcome.err
        facts = json.loads((tmp_path / "out" / "faithfulness.json").read_text())
        assert facts["reference"] == name
        assert facts["generated"] > 0
        tables.append(pl.read_parquet(tmp_path / "out" / "tables" / "faithfulness_samples.parquet"))
        patches = pl.read_parquet(tmp_path / "out" / "tables" / "faithfulness_patches.parquet")
        assert (patches["change"].max() > 0) == (number == 0)
        assert set(tables[-1]["rank"]) == {"g2r", "norm", "daam", "official"}
    whole = [table.filter(rank="g2r", kind="deletion", fraction=1)["inside"].item() for table in tables]
    assert whole[0] > 0
    assert tables[1]["inside"].max() == 0


def test_the_only_reference_with_places_is_the_one_that_is_ablated(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    settings = load_capture(captured_adapters(config, kinds=["plus", "full"], scales=[0.8, 0.8]))
    asked: dict[str, Any] = {"ranks": ["g2r"], "fractions": [0.5], "blocks": 0}
    found = ablate_run(settings, settings.out, tmp_path / "out", **asked)
    assert found.samples.filter(fraction=1, kind="deletion")["inside"].item() > 0
    assert ablate_run(
        settings, settings.out, tmp_path / "out", reference="reference-1", **asked, overwrite=True
    ).samples.equals(found.samples)


def test_refusals(planted: Path, config: Callable[..., Path], i2am: I2am, tmp_path: Path) -> None:
    run, out = tmp_path / "tiny.zarr", tmp_path / "out"

    def ablate(file: Path, *more: object) -> Outcome:
        return i2am("ablate", file, "--run", run, "--out", out, *QUICK, *more)

    ablate(planted, "--rank", "g2s").refused("unknown rank 'g2s'")
    ablate(planted, "--fractions", "0.1,x").refused(
        "--fractions; expected numbers such as 0.05,0.1; got '0.1,x'"
    )
    ablate(planted, "--fractions", "0.1,1.5").refused("fractions; expected numbers above 0, at most 1")
    ablate(planted, "--mode", "latent").refused("mode of adapter .*expected empty, mean or mask; got latent")
    ablate(planted, "--mode", "zero").refused("mode; expected empty or mean or latent or mask; got 'zero'")
    ablate(planted, "--blocks", "17").refused("blocks; expected 1 to 16")
    ablate(planted, "--confidence", "2").refused("confidence")
    assert not (out / "tables").exists()
    changed = config(pipeline=factory("planted"), call={"num_inference_steps": 3})
    ablate(changed).refused(
        "generated again without ablation; expected the image in the run; got one that dif"
    )
    fewer = config(pipeline=factory("planted"), samples={"scenes": {"count": 1}})
    ablate(fewer).refused("unknown sample of the configuration 'scene-0000001'")
