"""Maps times value norms, and maps of contributions, against literal loops; what has no answer is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from i2am.analysis.grids.regions import token_weights
from i2am.analysis.maps.attribution import WHY_CONTRIBUTION, attribution_maps
from i2am.analysis.reduction import softmax
from i2am.analysis.study.study import analyze
from i2am.storage.errors import InputError, NoAnswer
from i2am.storage.reading.run import Run
from tests.analysis import builders, oracle

STEPS = 3
BOTH = {"value_norm": True, "contribution": True}
LAYERS = (
    builders.layer("a", gen=(4, 3), ref=(3, 2), ref_prefix=1, dtype="float32", **BOTH),
    builders.layer("bb", gen=(2, 2), ref=(2, 2), static_key=False, dtype="float32", **BOTH),
    builders.layer("ccc", gen=(4, 3), ref=(3, 2), representation="scores", dtype="float32", lse=True, **BOTH),
)
POOLED = builders.layer("pooled", gen=(4, 3), ref=(0, 0), ref_prefix=1, dtype="float32", **BOTH)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("norms")
    return builders.build(place / "run.zarr", LAYERS, STEPS, ("one", "two"), images=True)


def norm(spec, sample, step):
    return builders.norms(spec, sample, 0 if spec.static_key else step)["value_norm"].astype(np.float64)


def weighted(put, spec, sample, gen=None, ref=None):
    """(r2g, g2r): every weight times the norm of its token, then weighted means, loop by loop."""
    scores = oracle.logits(*put[sample, spec.name], spec.logit_scale)
    first, tokens = spec.ref_prefix, spec.ref - spec.ref_prefix
    gen = np.ones(spec.gen) if gen is None else gen
    ref = np.ones(tokens) if ref is None else ref
    r2g, g2r = np.zeros((STEPS, spec.heads, spec.gen)), np.zeros((STEPS, spec.heads, tokens))
    for t in range(STEPS):
        for n in range(spec.heads):
            own = norm(spec, sample, t)[n]
            for r in range(first, spec.ref):
                column = oracle.softmax([scores[t, n, g, r] for g in range(spec.gen)])
                for g in range(spec.gen):
                    r2g[t, n, g] += spec.gen * column[g] * own[r] * ref[r - first] / ref.sum()
            for g in range(spec.gen):
                row = oracle.softmax(list(scores[t, n, g]))
                for r in range(first, spec.ref):
                    g2r[t, n, r - first] += spec.ref * row[r] * own[r] * gen[g] / gen.sum()
    return r2g, g2r


@pytest.mark.parametrize("direction", ["r2g", "g2r"])
def test_every_level_is_weights_times_norms(made, direction):
    run, put = made
    at = ["r2g", "g2r"].index(direction)
    size = [(4, 3), (3, 2)][at]
    grids = [(spec.gen_grid, spec.ref_grid)[at] for spec in LAYERS]
    for i, sample in enumerate(run.samples):
        own = [weighted(put, spec, sample)[at] for spec in LAYERS]
        ask = {"method": "norm", "direction": direction}
        found = attribution_maps(run, **ask)
        np.testing.assert_allclose(found[i], oracle.unified(own, grids, size), rtol=1e-5)
        assert found.attrs["method"] == "norm"
        assert found.attrs["units"] == "density × norm of the value through the output projection"
        times = attribution_maps(run, level="time", time_groups=2, **ask)
        for number, group in enumerate(([0, 1], [2])):
            expected = oracle.unified([values[group] for values in own], grids, size)
            np.testing.assert_allclose(times[i, number], expected, rtol=1e-5)
        heads = attribution_maps(run, level="head", **ask)
        layers = attribution_maps(run, level="layer", **ask)
        for head in range(2):
            expected = oracle.unified([values[:, [head]] for values in own], grids, size)
            np.testing.assert_allclose(heads[i, head], expected, rtol=1e-5)
        for number in range(3):
            expected = oracle.unified(own[number : number + 1], grids[number : number + 1], size)
            np.testing.assert_allclose(layers[i, number], expected, rtol=1e-5)
        some = attribution_maps(run, steps=[2], heads=[1], layers=["bb"], **ask)
        expected = oracle.unified([own[1][2:, 1:]], grids[1:2], (2, 2))
        np.testing.assert_allclose(some[i], expected, rtol=1e-5)


def test_regions_of_both_images(made):
    run, put = made
    spec, sample = LAYERS[0], "two"
    painted = token_weights((run.image("mask", sample) > 127)[..., 0], spec.gen_grid)
    thing = token_weights((run.image("reference_mask", sample) > 127)[..., 0], spec.ref_grid)
    r2g, g2r = weighted(put, spec, sample, painted, thing)
    for direction, image, expected in (("r2g", "reference_mask", r2g), ("g2r", "mask", g2r)):
        ask = {"at": image, "method": "norm", "layers": ["a"], "samples": [sample]}
        found = attribution_maps(run, direction, **ask)[0].values
        np.testing.assert_allclose(found.ravel(), expected.mean((0, 1)), rtol=1e-5)
    one = attribution_maps(run, "g2r", at=(2, 1), method="norm", layers=["a"], samples=[sample])
    chosen = np.arange(12) == 7
    expected = weighted(put, spec, sample, chosen.astype(float))[1].mean((0, 1))
    np.testing.assert_allclose(one[0].values.ravel(), expected, rtol=1e-5)


def test_equal_norms_change_nothing_but_the_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(
        builders, "norms",
        lambda spec, sample, step: {"value_norm": np.full((2, spec.ref), 3, np.float32)} if not step else {},
    )  # fmt: skip
    spec = replace(LAYERS[0], contribution=False)
    run, _ = builders.build(tmp_path / "run.zarr", [spec], STEPS)
    for direction in ("r2g", "g2r"):
        plain, times = (attribution_maps(run, direction, method=method) for method in ("i2am", "norm"))
        np.testing.assert_allclose(times, 3 * plain, rtol=1e-6)


def test_columns_that_need_an_offset_of_their_own(tmp_path, monkeypatch):
    """One key far below the others: its column is computed apart, with its norm too."""

    def extreme(spec, sample):
        query, key = builders.factors(spec, STEPS, np.random.default_rng(4), 3.0)
        query[..., 0], key[..., :] = 12, key / 4
        key[:, :, 3] = key[:, :, 3] - np.array([14, 0, 0, 0], np.float32)
        return query, key

    apart, original = [], softmax._Block._low_columns
    monkeypatch.setattr(softmax._Block, "_low_columns", lambda *a: apart.append(a) or original(*a))
    spec = replace(LAYERS[0], contribution=False)
    run, put = builders.build(tmp_path / "run.zarr", [spec], STEPS, data=extreme)
    found = attribution_maps(run, "r2g", method="norm", store=False)[0].values.ravel()
    np.testing.assert_allclose(found, weighted(put, spec, "one")[0].mean((0, 1)), rtol=1e-4)
    assert apart


def test_no_extra_pass_over_the_attention(tmp_path, monkeypatch):
    """Once the marginals are there, every level of both directions reads no query and no key."""
    run, _ = builders.build(tmp_path / "run.zarr", LAYERS, STEPS)
    reads, passes = [], []
    original, kernel = Run.read, softmax.weighted_means
    monkeypatch.setattr(Run, "read", lambda self, *a, **k: reads.append(a) or original(self, *a, **k))
    monkeypatch.setattr(
        "i2am.analysis.marginals.quantities.weighted_means", lambda *a: passes.append(1) or kernel(*a)
    )
    attribution_maps(run, "g2r", store=str(tmp_path / "kept.zarr")).compute()
    first = len(reads), len(passes)
    assert first == (3, 3)
    for direction in ("r2g", "g2r"):
        for level in ("unified", "time", "head", "layer"):
            attribution_maps(
                run, direction, level, method="norm", store=str(tmp_path / "kept.zarr")
            ).compute()
    assert (len(reads), len(passes)) == first


def test_contributions_are_means_over_steps_and_layers(made):
    run, _ = made
    found = attribution_maps(run, "r2g", "layer", method="contribution", layers=["a", "ccc"])
    for number, spec in enumerate((LAYERS[0], LAYERS[2])):
        steps = [builders.norms(spec, "one", step)["contribution"] for step in range(STEPS)]
        np.testing.assert_allclose(found[0, number].values.ravel(), np.mean(steps, axis=0), rtol=1e-6)
    unified = attribution_maps(run, "r2g", method="contribution", layers=["a", "ccc"])
    np.testing.assert_allclose(unified, found.mean("layer"), rtol=1e-6)
    late = attribution_maps(run, "r2g", method="contribution", layers=["a"], steps=[2])
    np.testing.assert_array_equal(late[0].values.ravel(), builders.norms(LAYERS[0], "one", 2)["contribution"])
    assert unified.attrs["kind"] == "contribution"
    assert "why" not in unified.attrs


def test_one_pooled_token_has_contributions_by_default_and_the_similarity_beside(tmp_path):
    run, _ = builders.build(tmp_path / "run.zarr", [POOLED], STEPS, images=True)
    for level in ("unified", "time", "layer"):
        found = attribution_maps(run, "r2g", level)
        assert (found.attrs["method"], found.attrs["why"]) == ("contribution", WHY_CONTRIBUTION)
        expected = attribution_maps(run, "r2g", level, method="contribution")
        np.testing.assert_array_equal(found, expected)
    for more in ({"method": "i2am"}, {"level": "head"}, {"heads": [0]}):
        similar = attribution_maps(run, "r2g", **more)
        assert (similar.attrs["method"], similar.attrs["kind"]) == ("i2am", "similarity")
    official = attribution_maps(run, "r2g", protocol="official")
    assert official.attrs["method"] == "i2am"
    grid = replace(POOLED, name="grid", ref_grid=(2, 2))
    both, _ = builders.build(tmp_path / "both.zarr", [POOLED, grid], STEPS)
    assert attribution_maps(both, "r2g").attrs["method"] == "i2am"
    bare = replace(POOLED, contribution=False)
    without, _ = builders.build(tmp_path / "bare.zarr", [bare], STEPS)
    assert attribution_maps(without, "r2g").attrs["method"] == "i2am"


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"direction": "g2r", "method": "contribution"}, "contributions on the reference.*ask for r2g"),
        ({"direction": "r2g", "method": "contribution", "level": "head"}, "head level"),
        ({"direction": "r2g", "method": "contribution", "heads": [0]}, "some heads.*leave heads out"),
        ({"direction": "r2g", "method": "contribution", "at": "reference_mask"}, "specific level"),
        ({"direction": "r2g", "method": "norm", "protocol": "official"}, "official"),
    ],
)
def test_what_has_no_answer_is_refused(made, ask, words):
    with pytest.raises((NoAnswer, InputError), match=words):
        attribution_maps(made[0], **ask)


@pytest.mark.parametrize("method", ["norm", "contribution"])
def test_runs_without_them_are_refused_with_the_remedy(tmp_path, method):
    plain = builders.layer("plain")
    run, _ = builders.build(tmp_path / "run.zarr", [plain], STEPS)
    with pytest.raises(NoAnswer, match="value_norms=True; got none; capture again, into a new run") as caught:
        attribution_maps(run, "r2g", method=method)
    assert "\n" not in str(caught.value)
    some, _ = builders.build(tmp_path / "some.zarr", [plain, LAYERS[0]], STEPS)
    assert attribution_maps(some, "r2g", method=method).attrs["left_out"] == ["plain"]
    with pytest.raises(NoAnswer, match="leave this layer out"):
        attribution_maps(some, "r2g", method=method, layers=["plain", "a"])


def test_studies_have_them_beside_the_maps(tmp_path):
    pooled = replace(POOLED, gen_grid=(4, 3))
    for name, layers, expected in (
        ("grid", LAYERS[:1], {("norm", "r2g"), ("norm", "g2r"), ("contribution", "r2g")}),
        ("pooled", [pooled], {("contribution", "r2g")}),
    ):
        run, _ = builders.build(tmp_path / f"{name}.zarr", layers, STEPS, images=True)
        study = analyze(run.path, tmp_path / name)
        rows = study.tables["baselines"]
        found = {(row["method"], row["direction"]) for row in rows.iter_rows(named=True)}
        assert found - {("daam", "r2g")} == expected
        kinds = set(study.tables["unified"].filter(direction="r2g")["kind"])
        assert kinds == ({"similarity"} if name == "pooled" else {"attention"})
        assert set(study.tables["unified"]["method"]) == {"i2am"}
