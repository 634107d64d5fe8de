"""Faithfulness in numbers: orders of tokens, removals, curves and areas, against literal versions."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from i2am.analysis.experiments import faithfulness, patch_effects
from i2am.analysis.experiments.faithfulness import (
    SAMPLES,
    check_fractions,
    place_words,
    ratio_interval,
    removals,
    summarise,
)
from i2am.analysis.experiments.faithfulness_charts import faithfulness_charts
from i2am.analysis.experiments.patch_effects import (
    block_masks,
    correlate,
    predicted_by_whole,
    predicted_maps,
)
from i2am.analysis.experiments.token_ranks import RANKS, Order, token_ranks
from i2am.analysis.maps.attribution import attribution_maps
from i2am.storage.errors import InputError, NoAnswer, UnknownName
from i2am.storage.reading.one_reference import one_reference
from tests.analysis.builders import build, layer


@pytest.fixture
def run(tmp_path):
    layers = [layer("a", gen=(4, 3), ref=(3, 2)), layer("b", gen=(8, 6), ref=(3, 2))]
    return build(tmp_path / "r.zarr", layers, samples=("one", "two"), images=True)[0]


def orders_of(run, sample="one", **options):
    return {
        (each.rank, each.layer, each.head, each.draw): each.tokens.tolist()
        for each in token_ranks(run, **options).orders(sample)
    }


def literal_order(maps, sample="one"):
    values = np.asarray(maps.sel(sample=sample)).reshape(-1)
    return sorted(range(len(values)), key=lambda token: -values[token])


def test_orders_follow_the_maps(run):
    found = orders_of(run)
    assert found["g2r", None, None, None] == literal_order(attribution_maps(run, "g2r"))
    painted = attribution_maps(run, "g2r", at="mask")
    assert found["g2r-painted", None, None, None] == literal_order(painted)
    official = attribution_maps(run, "g2r", protocol="official")
    assert found["official", None, None, None] == literal_order(official.interp(y=range(3), x=range(2)))
    assert found["lowest", None, None, None] == literal_order(-attribution_maps(run, "g2r"))
    one = attribution_maps(run, "g2r", "head", layers=["b"]).sel(head=1)
    assert found["layers", "b", 1, None] == literal_order(one)
    assert found["layers", None, 1, None] == literal_order(attribution_maps(run, "g2r", "head").sel(head=1))
    assert found["layers", "a", None, None] == literal_order(attribution_maps(run, "g2r", layers=["a"]))
    assert found["layers", None, None, None] == found["g2r", None, None, None]
    assert all(sorted(tokens) == list(range(6)) for tokens in found.values())


def test_orders_and_predictions_of_one_reference_are_made_of_its_layers(tmp_path):
    layers = [layer(gen=(4, 3)), layer("b", gen=(8, 6), ref=(3, 2), reference="reference-1")]
    whole, _ = build(tmp_path / "r.zarr", layers, samples=("one", "two"), images=True)
    run = one_reference(whole, "reference-1")
    found = orders_of(run)
    for rank, options in (
        ("g2r", {}),
        ("g2r-painted", {"at": "mask"}),
        ("official", {"protocol": "official"}),
    ):
        own = attribution_maps(whole, "g2r", reference="reference-1", **options)
        expected = own.interp(y=range(3), x=range(2)) if rank == "official" else own
        assert found[rank, None, None, None] == literal_order(expected)
        assert found[rank, None, None, None] != orders_of(whole)[rank, None, None, None]
    assert {layer for rank, layer, _, _ in found if rank == "layers"} == {None, "b"}
    everything = predicted_maps(run, "one", {(0, 0): np.ones((3, 2), bool)})
    alone = attribution_maps(whole, "r2g", reference="reference-1")[:1]
    np.testing.assert_allclose(everything["r2g"], alone, rtol=1e-5)


def test_the_official_rank_of_one_reference_keeps_to_the_official_layers(tmp_path):
    further = layer("down@reference-1", ref=(3, 2), reference="reference-1")
    run, _ = build(tmp_path / "r.zarr", [layer("down"), layer("mid_block"), further])
    found = orders_of(run, names=["official"])
    own = attribution_maps(run, "g2r", layers=["down"], protocol="official")
    assert found["official", None, None, None] == literal_order(own)


def test_daam_ranks_tokens_by_the_mean_of_their_own_maps(tmp_path):
    spec = layer("a", gen=(4, 4), ref=(2, 3), ref_prefix=1)
    run, put = build(tmp_path / "r.zarr", [spec])
    query, key = (values.astype(np.float64) for values in put["one", "a"])
    means = np.zeros(6)
    for step in range(3):
        for head in range(2):
            scores = np.exp(query[step, head] @ key[0, head].T * spec.logit_scale)
            means += (scores / scores.sum(1, keepdims=True)).mean(0)[1:]
    assert orders_of(run)["daam", None, None, None] == sorted(range(6), key=lambda token: -means[token])


def test_random_orders_are_the_same_each_time_and_differ_by_draw_and_sample(run):
    found = [orders_of(run, sample, names=["random"], draws=2) for sample in ("one", "one", "two")]
    assert found[0] == found[1] != found[2]
    assert found[0]["random", None, None, 0] != found[0]["random", None, None, 1]


def test_a_rank_without_an_answer_is_left_out_with_the_reason(tmp_path):
    run, _ = build(tmp_path / "r.zarr", [layer()])  # no images: no mask
    ranks = token_ranks(run, ["g2r", "g2r-painted"])
    assert ranks.names == ("g2r",)
    assert "mask" in ranks.notes["g2r-painted"]
    with pytest.raises(UnknownName, match="unknown rank 'g2s'"):
        token_ranks(run, ["g2s"])
    with pytest.raises(InputError, match="ranks; expected one that this run has; got .*mask"):
        token_ranks(run, ["g2r-painted"])
    with pytest.raises(InputError, match="draws; expected at least 1"):
        token_ranks(run, draws=0)
    mixed, _ = build(tmp_path / "m.zarr", [layer("a", ref=(3, 2)), layer("b", ref=(6, 4))])
    assert "different reference grids" in token_ranks(mixed, ["daam", "g2r"]).notes["daam"]
    assert token_ranks(mixed, ["g2r"]).grid == (6, 4)


def test_the_official_order_is_of_its_own_block_whatever_the_grids_of_the_others(tmp_path):
    name = "warp_flow_blks.4.transformer_blocks.0.attn2"
    layers = [layer(name, ref=(3, 2)), layer(name.replace("4", "7"), ref=(6, 4))]
    run, _ = build(tmp_path / "r.zarr", layers)
    own = attribution_maps(run, "g2r", protocol="official")
    assert own.shape[1:] == (3, 2)
    found = orders_of(run, names=["official"])["official", None, None, None]
    assert found[0] in fine_tokens_of(int(np.asarray(own.sel(sample="one")).argmax()))
    assert found[-1] in fine_tokens_of(int(np.asarray(own.sel(sample="one")).argmin()))


def fine_tokens_of(token):
    """Tokens of a 6 x 4 grid that lie in a token of a 3 x 2 grid."""
    row, column = divmod(token, 2)
    return [4 * (2 * row + y) + 2 * column + x for y in (0, 1) for x in (0, 1)]


@pytest.mark.parametrize("tokens", [1, 4])
def test_tokens_without_a_place_are_removed_together(tmp_path, tokens):
    layers = [
        layer(name, gen=gen, ref=(0, 0), ref_prefix=tokens) for name, gen in (("a", (4, 3)), ("b", (8, 6)))
    ]
    run, _ = build(tmp_path / "p.zarr", layers)
    ranks = token_ranks(run)
    assert (ranks.names, ranks.placed, set(ranks.notes)) == (("whole",), False, set(RANKS))
    (only,) = removals(ranks.orders("one"), (0, 0.1, 1), ranks.grid)
    assert (only.kind, only.fraction, only.removed.tolist()) == ("deletion", 1, [[True] * tokens])
    maps = predicted_by_whole(run, "one", (8, 6))
    np.testing.assert_array_equal(maps["r2g"], attribution_maps(run, "r2g", method="i2am", samples=["one"]))
    rows = correlate("one", maps, {(0, 0): np.arange(48.0).reshape(8, 6)}, None)
    assert [row["predictor"] for row in rows] == ["r2g"]  # the run has no norms
    table = pl.DataFrame([SAMPLE | {"rank": "whole", "inside": 3.0}], schema=SAMPLES)
    assert summarise(table).filter(measure="change")["value"].to_list() == [3]
    assert not list(faithfulness_charts(summarise(table)))  # one number is no curve
    with pytest.raises(NoAnswer, match="as many in every layer; got 2, 16"):
        several = [layer("a", ref=(0, 0), ref_prefix=2), layer("b", ref=(0, 0), ref_prefix=16)]
        token_ranks(build(tmp_path / "s.zarr", several)[0])


SAMPLE = {"sample": "one", "rank": "g2r", "kind": "deletion", "fraction": 1.0, "inside": 1.0}


@pytest.mark.parametrize(("outside", "words"), [(None, "of the image"), (2.0, "inside the mask")])
def test_without_a_mask_it_is_the_image_that_changes(outside, words):
    rows = [SAMPLE | {"fraction": fraction, "outside": outside} for fraction in (0.0, 1.0)]
    summary = summarise(pl.DataFrame(rows, schema=SAMPLES))
    assert place_words(summary) == words
    assert [words in chart.unit for _, chart in faithfulness_charts(summary)] == [True]


@pytest.mark.parametrize("seed", range(3))
def test_removals_are_the_first_tokens_or_all_the_others(seed):
    order = Order("g2r", np.random.default_rng(seed).permutation(15))
    fractions = check_fractions([0.4, 0.1])
    assert fractions == (0, 0.1, 0.4, 1)
    found = {(each.kind, each.fraction): each.removed for each in removals([order], fractions, (3, 5))}
    for fraction in fractions:
        count = int(np.floor(fraction * 15 + 0.5)) if fraction != 0.1 else 2
        first = np.isin(np.arange(15), order.tokens[:count]).reshape(3, 5)
        np.testing.assert_array_equal(found["deletion", fraction], first)
        np.testing.assert_array_equal(found["insertion", fraction], ~first)


def test_layers_and_heads_are_compared_at_one_fraction():
    orders = [Order("layers", np.arange(10), "a"), Order("layers", np.arange(10), "a", 1)]
    for fractions, used in (((0.2, 0.5), 0.2), ((0.05, 0.12, 0.4), 0.12), ((1.0,), 1.0)):
        found = list(removals(orders, check_fractions(fractions), (2, 5)))
        assert {(each.kind, each.fraction) for each in found} == {("deletion", used)}
        assert len(found) == 2


def test_change_is_the_mean_absolute_difference_of_levels():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (4, 6, 3), dtype=np.uint8) for _ in range(2))
    change = faithfulness.pixel_change(first, second)
    y, x = 2, 5
    literal = sum(abs(int(first[y, x, c]) - int(second[y, x, c])) for c in range(3)) / 3
    assert change[y, x] == pytest.approx(literal)
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:4] = True
    inside, outside = faithfulness.inside_and_outside(change, mask)
    assert inside == pytest.approx(change[1:3, 2:4].mean())
    assert outside * 20 + inside * 4 == pytest.approx(change.sum())
    finer = mask.repeat(2, 0).repeat(2, 1)
    assert faithfulness.inside_and_outside(change, finer) == pytest.approx((inside, outside))
    assert faithfulness.inside_and_outside(change, None) == (pytest.approx(change.mean()), None)
    assert faithfulness.inside_and_outside(change, mask | True) == (pytest.approx(change.mean()), None)


def table(values, samples=("s", "t", "u")):
    """Rows {(rank, draw, kind, fraction): value of the first sample, plus its number}."""
    rows = [
        {"sample": sample, "rank": rank, "draw": draw, "kind": kind, "fraction": fraction}
        | {"inside": value * (1 + number), "outside": None}
        for number, sample in enumerate(samples)
        for (rank, draw, kind, fraction), value in values.items()
    ]
    return pl.DataFrame(rows, schema=SAMPLES)


def test_curves_areas_and_ratios():
    values = {("g2r", None, "deletion", f): v for f, v in ((0.0, 0), (0.5, 8), (1.0, 10))}
    values |= {("random", draw, "deletion", 0.5): v for draw, v in enumerate((1, 3))}
    found = summarise(table(values))
    curve = found.filter(measure="change", rank="g2r").sort("fraction")
    assert curve["value"].to_list() == [0, 16, 20]  # the mean of samples of 1, 2 and 3 times the values
    area = found.filter(measure="area")
    assert area["rank"].to_list() == ["g2r"]  # the random rank has no ends
    assert area["value"].item() == pytest.approx(2 * (0.5 * 4 + 0.5 * 9))
    assert area["low"].item() < area["value"].item() < area["high"].item()
    ratio = found.filter(measure="times random").row(0, named=True)
    assert (ratio["rank"], ratio["fraction"], ratio["value"], ratio["count"]) == ("g2r", 0.5, 4, 3)
    assert ratio["low"] == pytest.approx(4)  # paired: each sample has the same ratio
    assert ratio["high"] == pytest.approx(4)
    assert found.filter(measure="change", rank="random")["value"].to_list() == [4]  # over draws and samples
    assert set(found["region"].to_list()) == {"inside"}
    assert summarise(table(values, ("s",)))["low"].null_count() == len(summarise(table(values, ("s",))))
    assert summarise(table({})).is_empty()


def test_other_distances_have_curves_of_their_own():
    values = {("g2r", None, "deletion", f): v for f, v in ((0.0, 0), (0.5, 8), (1.0, 10))}
    values |= {("random", None, "deletion", f): v for f, v in ((0.0, 0), (0.5, 2), (1.0, 10))}
    plain = table(values)
    rows = plain.with_columns(outside=pl.lit(0.0), features=pl.lit("clip"), lpips=pl.col("inside") * 3)
    rows = rows.with_columns(feature_distance=pl.col("inside") / 10).select(*SAMPLES)
    found, inside = summarise(rows), summarise(plain)
    assert set(inside["distance"]) == {"pixels"}
    for distance, factor in (("clip", 0.1), ("lpips", 3), ("pixels", 1)):
        own = found.filter(pl.col("region") != "outside", distance=distance)
        assert set(own["region"]) == {"inside" if distance == "pixels" else "image"}
        for measure in ("change", "area", "times random"):
            times = 1 if measure == "times random" else factor
            expected = inside.filter(measure=measure)["value"].to_numpy() * times
            np.testing.assert_allclose(own.filter(measure=measure)["value"], expected)
    names = dict(faithfulness_charts(found))
    assert list(names) == ["faithfulness", "faithfulness-features", "faithfulness-lpips"]
    assert names["faithfulness-features"].unit.startswith("cosine distance of features: clip")


def test_a_ratio_has_the_interval_of_literal_draws():
    rng = np.random.default_rng(3)
    values, base = rng.uniform(1, 9, 7), rng.uniform(1, 3, 7)
    chance, ratios = np.random.default_rng(0), []
    for chosen in chance.integers(0, 7, (500, 7)):
        ratios.append(sum(values[n] for n in chosen) / sum(base[n] for n in chosen))
    expected = (sum(values) / sum(base), *np.quantile(ratios, [0.05, 0.95]))
    assert ratio_interval(values, base, 0.9, 500) == pytest.approx(expected)
    assert np.isnan(ratio_interval(np.zeros(3), np.zeros(3))).all()


@pytest.mark.parametrize(("grid", "blocks"), [((16, 16), 4), ((5, 7), 3), ((2, 3), 1)])
def test_blocks_cover_the_reference_once(grid, blocks):
    found = block_masks(grid, blocks)
    assert len(found) == blocks**2
    np.testing.assert_array_equal(np.sum(list(found.values()), 0), np.ones(grid))
    assert min(mask.sum() for mask in found.values()) >= 1
    with pytest.raises(InputError, match="blocks; expected 1 to"):
        block_masks(grid, 20)


def test_predictions_are_maps_of_the_blocks(run):
    blocks = block_masks((3, 2), 2)
    found = predicted_maps(run, "two", blocks)
    for number, mask in enumerate(blocks.values()):
        at = [tuple(map(int, place)) for place in np.argwhere(mask)]
        for predictor, method in (("r2g", "i2am"), ("daam", "daam")):
            own = attribution_maps(run, "r2g", at=at, method=method, samples=["two"])
            np.testing.assert_allclose(found[predictor][number], own[0], rtol=1e-5)
        np.testing.assert_allclose(found["r2g-all"][number], attribution_maps(run, "r2g")[1], rtol=1e-5)


def test_correlation_is_of_ranks_inside_the_mask():
    change = np.arange(16.0).reshape(4, 4)
    mask = np.zeros((8, 8), bool)
    mask[:4] = True  # the upper half
    predicted = {"r2g": np.where(np.arange(4)[:, None] < 2, change, -change)[None]}
    row = correlate("s", predicted, {(0, 1): change}, mask)[0]
    assert row["correlation"] == pytest.approx(1)
    assert row["change"] == change[:2].mean()
    assert correlate("s", predicted, {(0, 1): change}, None)[0]["correlation"] < 0
    flat = {"r2g": np.full((1, 4, 4), 1 / 3) + np.spacing(change[None] % 3)}  # but for rounding
    for maps, image, inside in (
        (flat, change, mask),
        (predicted, change * 0, None),
        (predicted, change, mask & False),
    ):
        row = correlate("s", maps, {(0, 1): image}, inside)[0]
        assert row["correlation"] is None


def test_blocks_count_by_how_much_they_changed():
    rows = [("s", 0, 0, "r2g", 0.8, 9.0), ("s", 0, 1, "r2g", -1.0, 1.0), ("s", 1, 1, "r2g", None, 0.0)]
    rows += [("t", 0, 0, "r2g", 0.5, 1.0), ("t", 0, 1, "r2g", 0.1, 3.0)]
    found = patch_effects.summarise_patches(pl.DataFrame(rows, schema=patch_effects.PATCHES, orient="row"))
    assert found["value"].item() == pytest.approx((0.62 + 0.2) / 2)
    assert found["count"].item() == 2


def test_charts_show_what_there_is(run, tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for sample in ("one", "two"):
        for each in removals(token_ranks(run).orders(sample), check_fractions([0.1, 0.4]), (3, 2)):
            of = {"rank": each.order.rank, "layer": each.order.layer, "head": each.order.head}
            values = {"draw": each.order.draw, "inside": rng.uniform(), "outside": 0.0}
            rows.append({"sample": sample, "kind": each.kind, "fraction": each.fraction} | of | values)
    summary = summarise(pl.DataFrame(rows, schema=SAMPLES))
    charts = dict(faithfulness_charts(summary))
    assert list(charts) == ["faithfulness", "faithfulness-layers"]
    for name, chart in charts.items():
        chart.save(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert not dict(faithfulness_charts(summary.clear()))
    assert set(RANKS) >= set(summary["rank"].to_list())
