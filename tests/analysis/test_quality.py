"""Scores of pairs, correlations with their intervals, and the sentence on the paper's claim."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from i2am.analysis.experiments.correlation import STATISTICS, coefficients_of_draws, correlations
from i2am.analysis.experiments.quality import CORRELATIONS, by_model, correlate, pair_scores
from i2am.analysis.experiments.quality_claim import claims, verdict

NAN = float("nan")


def test_ssim_and_psnr_equal_torchmetrics():
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (48, 40, 3)).astype(np.uint8)
    made = np.clip(truth + rng.normal(0, 30, truth.shape), 0, 255).astype(np.uint8)
    a, b = (torch.from_numpy(image).double().permute(2, 0, 1)[None] for image in (made, truth))
    found = pair_scores(made, truth)
    whole = structural_similarity_index_measure(a, b, data_range=255.0, sigma=1.5, return_full_image=True)[1]
    # torchmetrics reflects at the border and leaves it out of the mean, as scikit-image does.
    assert found["ssim"] == pytest.approx(float(whole[..., 5:-5, 5:-5].mean()), abs=1e-4)
    assert found["psnr"] == pytest.approx(float(peak_signal_noise_ratio(a, b, data_range=255.0)), abs=1e-4)
    assert found["ssim_inside"] is found["psnr_inside"] is None


def test_scores_inside_the_mask_see_nothing_else():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    inside = np.zeros((40, 40), bool)
    inside[10:30, 5:25] = True
    made = truth.copy()
    made[inside] = 255 - made[inside]
    found = pair_scores(made, truth, inside)
    assert found["psnr_inside"] < found["psnr"]
    assert found["ssim_inside"] < found["ssim"]
    squares = (made[inside].astype(float) - truth[inside]) ** 2
    assert found["psnr_inside"] == pytest.approx(10 * np.log10(255**2 / squares.mean()))
    same = pair_scores(truth, truth, inside)
    assert same["ssim"] == same["ssim_inside"] == 1
    assert same["psnr"] is same["psnr_inside"] is None  # no noise at all
    tiny = pair_scores(made[:9, :9], truth[:9, :9])
    assert tiny["ssim"] is None
    assert tiny["psnr"] is None


def test_draws_equal_scipy_on_repeated_pairs():
    rng = np.random.default_rng(2)
    x = rng.integers(0, 6, 25).astype(float)
    y = x + rng.integers(0, 9, 25)
    times = np.stack([np.bincount(rng.integers(0, 25, 25), minlength=25) for _ in range(30)])
    times[3] = 0
    times[3, 7] = 25  # one pair alone: no coefficient
    found = coefficients_of_draws(x, y, times)
    kept = np.delete(times, 3, axis=0)
    want = [
        [one(np.repeat(x, own), np.repeat(y, own)).statistic for one in STATISTICS.values()] for own in kept
    ]
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_values_are_scipys_and_intervals_cover_them():
    rng = np.random.default_rng(3)
    x = rng.normal(size=80)
    y = x + rng.normal(size=80)
    y[5], x[9] = NAN, NAN
    known = np.isfinite(x) & np.isfinite(y)
    for found in correlations(x, y):
        result = STATISTICS[found.statistic](x[known], y[known])
        assert found.value == pytest.approx(result.statistic)
        assert found.p == pytest.approx(result.pvalue)
        assert found.low < found.value < found.high
        assert (found.count, found.units) == (78, 78)
    fisher = np.tanh(np.arctanh(found.value) + np.array([-1, 1]) * 1.96 / np.sqrt(75))
    assert [found.low, found.high] == pytest.approx(fisher, abs=0.07)  # Pearson's, of a normal law


def test_one_scene_of_several_runs_is_one_unit():
    """Repeating every pair ten times tells nothing new, and must not narrow the interval."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=30)
    y = 0.6 * x + rng.normal(size=30)
    single = correlations(x, y)[2]
    units = [str(n) for n in range(30)] * 10
    again = correlations(np.tile(x, 10), np.tile(y, 10), units)[2]
    assert (again.count, again.units, again.p) == (300, 30, None)
    assert again.high - again.low == pytest.approx(single.high - single.low, rel=0.1)
    assert correlations(np.tile(x, 10), np.tile(y, 10))[2].high < again.high - 0.1


ROUNDED = [1, 1 + 2**-52, 1, 1 + 2**-51]


@pytest.mark.parametrize("x", [[1, 1, 1, 1], ROUNDED, [1, 2], [], [1, NAN, NAN, 2, NAN]])
def test_what_has_no_coefficient_is_left_empty(x):
    for found in correlations(x, list(range(len(x)))):
        assert (found.value, found.low, found.high, found.p) == (None,) * 4


def test_a_perfect_order_of_four_is_not_called_confirmed():
    """Its interval has no width, but one of twelve orders is as good: p 1/12."""
    found = correlations([1, 2, 3, 4], [8, 6, 5, 1])[0]
    assert (found.value, found.low, found.high) == (-1, -1, -1)
    assert found.p == pytest.approx(2 / 24)
    row = {"expected": -1, "confidence": 0.95} | {name: getattr(found, name) for name in found.__slots__}
    assert verdict(row) == "undecided"
    more = correlations(range(6), [-1, -2, -3, -4, -5, -6])[0]
    assert more.p == pytest.approx(2 / 720)
    assert verdict(row | {name: getattr(more, name) for name in more.__slots__}) == "confirmed"
    assert stats.spearmanr(range(6), range(6)).pvalue < 1e-6  # scipy's own p trusts a perfect order blindly


def study(runs, scenes, seed=0):
    """Frames of a made-up study: SSIM rises with the IMACS of G2R, FID falls, LPIPS is noise."""
    rng = np.random.default_rng(seed)
    samples, attention, sets = [], [], []
    for run in range(runs):
        model = {"run": f"r{run}", "group": None}
        for scene in range(scenes):
            imacs = run + rng.normal()
            scores = {"ssim": imacs + 0.3 * rng.normal(), "lpips": rng.normal(), "psnr": None}
            scores |= dict.fromkeys(("ssim_inside", "psnr_inside", "similarity"), 0.5)
            samples.append({**model, "sample": f"s{scene}", "features": "f", **scores})
            for direction, value in (("g2r", imacs), ("r2g", -imacs)):
                kind = {"direction": direction, "level": "unified"}
                attention.append({**model, "sample": f"s{scene}", **kind, "imacs": value, "inside": 1.0})
        distances = {"fid": 10.0 - run, "kid": None, "count": scenes, "real": scenes, "note": None}
        sets.append({**model, "features": "f", **distances})
    schema = {"group": pl.String, "psnr": pl.Float64, "kid": pl.Float64, "note": pl.String}
    return [
        pl.DataFrame(rows, schema_overrides={name: kind for name, kind in schema.items() if name in rows[0]})
        for rows in (samples, attention, sets)
    ]


def test_the_claim_is_judged_score_by_score():
    found = correlate(*study(6, 20), 0.95)
    g2r, r2g = reversed(claims(found, "my:features"))
    assert r2g.startswith(
        "R2G of all reference tokens: the paper’s claim, that higher IMACS goes with lower FID"
    )
    assert "is measured only in part: confirmed for FID (Spearman -1.00" in g2r
    assert "SSIM (Spearman 0.9" in g2r
    assert "120 samples" in g2r
    assert "undecided for LPIPS (Spearman" in g2r
    assert "not measured for KID (FID, KID and feature similarity are those of my:features features)." in g2r
    assert "contradicted for FID (Spearman 1.00" in r2g
    assert all("\n" not in sentence for sentence in (g2r, r2g))


def test_correlations_within_runs_leave_the_runs_out():
    samples, attention, sets = study(6, 20)
    # Within a run, IMACS and SSIM are made unrelated: only the runs' means go together.
    rng = np.random.default_rng(1)
    run = samples["run"].str.slice(1).cast(pl.Float64).to_numpy()
    samples = samples.with_columns(pl.Series("ssim", 5 * run + rng.normal(size=120)))
    noise = np.repeat(rng.normal(size=120), 2)
    attention = attention.with_columns(pl.Series("imacs", np.repeat(5 * run, 2) + noise))
    found = correlate(samples, attention, sets, 0.95).filter(
        direction="g2r", measure="imacs", score="ssim", statistic="spearman"
    )
    values = dict(zip(found["over"], found["value"], strict=True))
    assert values["samples"] > 0.9
    assert abs(values["samples within runs"]) < 0.2
    alone = correlate(*study(1, 20), 0.95)
    assert alone["over"].unique().sort().to_list() == ["runs", "samples"]
    assert alone.schema == pl.Schema(CORRELATIONS)


def test_the_table_has_every_score_of_every_run():
    frames = study(3, 5)
    table = by_model(*frames, 0.95)
    assert table.group_by("run").len()["len"].to_list() == [2 + 6 + 2 * 2] * 3
    row = table.filter(run="r1", score="ssim").row(0, named=True)
    own = frames[0].filter(run="r1")["ssim"]
    assert row["value"] == pytest.approx(own.mean())
    assert row["low"] < row["value"] < row["high"]
    assert row["count"] == 5
    assert table.filter(run="r2", score="fid")["value"].to_list() == [8.0]
    assert set(table.filter(pl.col("features").is_not_null())["score"]) == {"fid", "kid", "similarity"}
