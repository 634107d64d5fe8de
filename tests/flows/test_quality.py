"""``i2am quality``: results, resuming, groups, machines without torch, and refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from i2am.flows.experiments.quality import TABLES, quality_runs
from i2am.storage.tools.feature_store import FeatureStore
from i2am.storage.writing.amend import amend
from tests.analysis.builders import build, layer
from tests.pipeline import feature_functions

COLOURS = "tests.pipeline.feature_functions:colours"
SAMPLES = ("s/1", "s2", "s3", "s4", "s5")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three runs that share samples and sources: later ones paint more like the source."""
    folder = tmp_path_factory.mktemp("models")
    for number in range(3):
        run, _ = build(
            folder / f"m{number}.zarr", [layer(gen=(8, 6))], samples=SAMPLES, seed=number, images=True
        )
        for place, sample in enumerate(SAMPLES):
            rng = np.random.default_rng(place)
            source = rng.integers(0, 256, (24, 18, 3)).astype(np.uint8)
            noise = np.random.default_rng(99 + place).normal(0, 60 - 25 * number, source.shape)
            painted = np.clip(source + noise, 0, 255).astype(np.uint8)
            notes = {"garment": "upper" if place < 3 else "lower"}
            amend(run.path, sample, {"source": source, "generated": painted}, notes)
    return folder


@pytest.fixture
def models(made, tmp_path):
    import shutil

    return Path(shutil.copytree(made, tmp_path / "models"))


def words(models, *more, out="out", features=COLOURS):
    return ["quality", f"{models}/m*.zarr", "--out", models / out, "--features", features, *more, "-q"]


def measured(models, **options):
    """What the command computes, without pictures."""
    return quality_runs(f"{models}/m*.zarr", **{"features": COLOURS, **options})


def tables(out):
    return {path.stem: pl.read_parquet(path) for path in (out / "tables").glob("*.parquet")}


def test_runs_are_measured_and_correlated(i2am, models):
    outcome = i2am(*words(models))
    assert outcome.status == 0, outcome.err
    assert f"FID, KID and feature similarity are those of {COLOURS} features" in outcome.out
    assert "note: LPIPS is not measured: " in outcome.out
    assert "note: 3 sets: 5 images for 9 features: FID is biased upwards" in outcome.out
    assert "G2R of painted patches: the paper’s claim, " in outcome.out
    found = tables(models / "out")
    assert set(found) == set(TABLES)
    scores = found["quality"].filter(pl.col("score").is_in(["fid", "ssim", "psnr_inside"]))
    for (score,), rows in scores.group_by("score"):
        assert rows["run"].to_list() == ["m0", "m1", "m2"]
        values = rows["value"].to_list()
        assert values == sorted(values, reverse=score == "fid"), score
    assert found["quality_samples"]["truth"].unique().to_list() == ["source"]
    over = found["quality_correlations"]["over"].unique().sort().to_list()
    assert over == ["runs", "samples", "samples within runs"]
    rows = found["quality_correlations"].filter(over="samples", score="ssim")
    assert set(zip(rows["count"], rows["units"], strict=True)) == {(15, 5)}
    # SSIM of the first sample, from the images themselves
    from skimage.metrics import structural_similarity

    from i2am.storage.reading.open import open_run

    run = open_run(models / "m1.zarr")
    want = structural_similarity(
        run.image("source", "s/1"), run.image("generated", "s/1"), channel_axis=2,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    own = found["quality_samples"].filter(run="m1", sample="s/1")["ssim"].item()
    assert own == pytest.approx(want)
    for name in ("samples", "runs"):
        assert Image.open(models / "out" / "pictures" / f"quality-{name}.png").width > 500
    assert i2am("verify", models / "out").status == 0
    facts = json.loads((models / "out" / "quality.json").read_bytes())
    assert facts["features"] == COLOURS


def test_imacs_is_that_of_the_other_commands(i2am, models):
    run = models / "m2.zarr"
    found = measured(models).tables["quality_attention"].filter(run="m2", direction="g2r", level="unified")
    want = {
        row["sample"]: row["imacs"]
        for row in i2am("imacs", run, "--direction", "g2r", "--json").json["scores"]
    }
    assert dict(zip(found["sample"], found["imacs"], strict=True)) == pytest.approx(want)


def test_features_are_taken_once_and_an_interruption_loses_little(i2am, models, monkeypatch):
    from i2am.flows.experiments import features

    monkeypatch.setattr(features, "PART", 1)
    monkeypatch.setattr("i2am.pipeline.features.contract.BATCH", 4)
    calls, stop = feature_functions.CALLS, 2

    def writing(self, model, keys, values, write=FeatureStore.write):
        nonlocal stop
        write(self, model, keys, values)
        stop -= 1
        if not stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write", writing)
        assert i2am(*words(models)).status == 130
    assert not any((models / "out").iterdir())
    calls.clear()
    measured(models)
    probes = [3, 1, 1, 1]  # of the fingerprint
    images = 15 + 5  # generated, and sources that the runs share
    assert calls[:4] == probes
    assert sum(calls[4:]) == images - 2 * 4
    calls.clear()
    measured(models)
    assert calls == probes
    amend(str(models / "m0.zarr"), "s2", {"generated": np.zeros((24, 18, 3), np.uint8)})
    calls.clear()
    measured(models)
    assert calls == [*probes, 1]


def test_samples_are_grouped_by_an_annotation(i2am, models):
    found = measured(models, group="garment").tables
    fid = found["quality"].filter(score="fid")
    assert list(zip(fid["run"], fid["group"], fid["count"], strict=True))[:2] == [
        ("m0", "upper", 3),
        ("m0", "lower", 2),
    ]
    assert found["quality_correlations"].filter(over="runs", score="fid")["count"].unique().to_list() == [6]
    i2am(*words(models, "--group", "colour")).refused("annotation of sample 's/1' 'colour'; .*i2am amend")


def test_a_folder_of_real_pictures_is_the_truth(models):
    real = models / "real" / "s"
    real.mkdir(parents=True)
    for number, sample in enumerate(SAMPLES[:4]):
        picture = Image.new("RGB", (18, 24), (number * 40, 9, 9))
        picture.save(models / "real" / f"{sample}.png")
    found = measured(models, real=models / "real")
    assert "3 samples: no true image of this sample" in found.notes
    samples = found.tables["quality_samples"]
    assert samples["truth"].to_list() == ["real", "real", "real", "real", None] * 3
    assert samples["ssim"].null_count() == 3
    # Names that are no sample's: the set alone is compared with, and pairs with the runs' own sources.
    for number, path in enumerate(sorted(real.parent.rglob("*.png"))):
        path.rename(real.parent / f"photo{number}.png")
    found = measured(models, real=models / "real")
    assert set(found.tables["quality_samples"]["truth"]) == {"source"}
    arrays = {sample: np.full((24, 18, 3), 7, np.uint8) for sample in SAMPLES}
    found = quality_runs(str(models / "m0.zarr"), real=arrays, features=COLOURS)
    assert set(found.tables["quality_samples"]["truth"]) == {"real"}


def test_without_torch_the_features_that_are_here_serve(i2am, models, monkeypatch):
    before = measured(models).tables["quality"]
    monkeypatch.setattr("i2am.flows.experiments.quality_models.can_take", lambda: False)
    assert measured(models).tables["quality"].equals(before)
    i2am(*words(models, features="clip")).refused(
        "features 'clip' are not all here.*pip install 'i2am.capture.'"
    )


def test_features_of_another_model_are_refused(i2am, models, monkeypatch):
    """Two models of one name left features beside the runs: which of them is meant cannot be known."""
    measured(models)
    store = FeatureStore(str(models / "features"))
    (model,) = store.models()
    known = store.read(model)
    store.write(f"{COLOURS}@000000000000", list(known), np.stack(list(known.values())) * 2)
    monkeypatch.setattr("i2am.flows.experiments.quality_models.can_take", lambda: False)
    i2am(*words(models)).refused(
        f"features of another model: '{COLOURS}'; expected all .*20 images of {COLOURS}@0000"
    )


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--features", "inception"], "no weights of Inception at .*download https"),
        (["--features", "clip", "--weights", "nowhere"], "no folder nowhere"),
        (["--features", "tests.pipeline.feature_functions:random"], "the same numbers of an image"),
        (["--features", "tests.pipeline.feature_functions:absent"], "unknown function in tests.pipeline"),
        (["--real", "nowhere"], "no folder nowhere of real images; correct --real"),
        (["--real", "models"], "no real images in models; expected pictures"),
        (["--lpips"], "LPIPS needs torchvision|no AlexNet weights"),
        (["--confidence", "2"], "confidence; expected"),
        (["--penalty", "-1"], "penalty; expected"),
    ],
)
def test_bad_input_is_refused_in_one_line(i2am, models, monkeypatch, tmp_path, more, what):
    import torch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    i2am(*words(models), *more).refused(what)
    assert not (models / "out" / "quality.json").exists()


def test_runs_without_real_or_generated_images_are_refused(i2am, tmp_path):
    rng = np.random.default_rng(0)
    build(tmp_path / "bare.zarr", [layer()], samples=("a", "b"))
    question = ["quality", tmp_path / "bare.zarr", "--out", tmp_path / "out", "--features", COLOURS, "-q"]
    i2am(*question).refused("no generated images in these runs")
    for sample in ("a", "b"):
        amend(
            str(tmp_path / "bare.zarr"),
            sample,
            {"generated": rng.integers(0, 255, (24, 18, 3)).astype(np.uint8)},
        )
    i2am(*question).refused(
        "no real images to compare with; expected --real FOLDER, or runs with an image 'target'"
    )


def test_a_damaged_sample_is_left_out_and_named(i2am, models):
    file = next((models / "m1.zarr" / "images" / "generated").glob("c.2.*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    outcome = i2am(*words(models))
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert "refused: sample 's3', layer 'images/generated' is damaged" in outcome.err
    counts = tables(models / "out")["quality"].filter(score="fid")["count"].to_list()
    assert counts == [5, 4, 5]


def test_runs_that_are_damaged_throughout_are_refused(i2am, models):
    for file in (models / "m1.zarr" / "images" / "generated").glob("c.*"):
        file.write_bytes(b"")
    outcome = i2am("quality", models / "m1.zarr", "--out", models / "out", "--features", COLOURS, "-q")
    assert outcome.status == 1
    assert "sample 's/1' is damaged: and so are all others (5)" in outcome.err


def test_damaged_attention_is_left_out_and_named_too(models):
    file = next((models / "m1.zarr" / "attention" / "a" / "query").glob("c.1.*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    found = measured(models)
    (refusal,) = found.refusals
    assert (refusal["run"], refusal["sample"]) == ("m1", "s2")
    assert "sample 's2', layer 'a' is damaged" in refusal["reason"]
    assert found.tables["quality"].filter(score="ssim")["count"].to_list() == [5, 4, 5]


def test_a_single_reference_token_has_r2g_alone(tmp_path):
    run, _ = build(tmp_path / "pooled.zarr", [layer(ref=(1, 1))], samples=SAMPLES, images=True)
    found = quality_runs(run, features=COLOURS)
    kinds = found.tables["quality_attention"].select("direction", "level", "kind").unique().rows()
    assert kinds == [("r2g", "unified", "similarity")]
    assert [claim.split(":")[0] for claim in found.claims] == ["R2G of all reference tokens"]
    assert any("FID and KID are correlated from 3 on" in note for note in found.notes)


def test_other_sizes_and_protocols(models):
    run = str(models / "m0.zarr")
    real = {sample: np.zeros((30, 30, 3), np.uint8) for sample in SAMPLES}
    found = quality_runs(run, real=real, features=COLOURS, protocol="official")
    assert found.tables["quality_samples"]["ssim"].null_count() == 5
    assert any("differ in size: 18×24 and 30×30" in note for note in found.notes)
    assert set(found.tables["quality_attention"]["protocol"]) == {"official"}
