from __future__ import annotations

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from i2am.analysis.maps.attribution import attribution_maps
from i2am.storage.errors import EmptyRun, InputError, NoAnswer, UnknownName
from i2am.storage.reading.open import open_run
from i2am.storage.writing.create import create_run
from tests.analysis import oracle
from tests.analysis.builders import build, factors, layer, uniform

LAYERS = [
    layer("a", heads=2, gen=(4, 3), ref=(3, 2)),
    layer("b", heads=2, gen=(8, 6), ref=(6, 4), ref_prefix=1),
    layer("c", heads=2, gen=(2, 2), ref=(2, 1), representation="scores", dtype="float32"),
]


def expected(put, run, direction, size, names=("a", "b", "c")):
    marginals, grids = [], []
    for name in names:
        spec = run.layers[name]
        scores = oracle.logits(*put["one", name], spec.scale)
        marginals.append((oracle.r2g if direction == "r2g" else oracle.g2r)(scores, spec.ref_prefix))
        grids.append(spec.gen_grid if direction == "r2g" else spec.ref_grid)
    return oracle.unified(marginals, grids, size)


@pytest.mark.parametrize(("direction", "size"), [("r2g", (8, 6)), ("g2r", (6, 4))])
def test_unified_equals_the_oracle(tmp_path, direction, size):
    run, put = build(tmp_path / "run.zarr", LAYERS)
    maps = attribution_maps(run, direction)
    assert maps.dims == ("sample", "y", "x")
    assert maps.shape == (1, *size)
    np.testing.assert_allclose(maps[0], expected(put, run, direction, size), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("static", [True, False])
def test_every_dtype_prefix_and_key(tmp_path, dtype, prefix, static):
    spec = layer(
        gen=(5, 2), ref=(2, 3), ref_prefix=prefix, dtype=dtype, static_key=static, representation="factors"
    )
    run, put = build(tmp_path / "run.zarr", [spec])
    for direction, size in (("r2g", (5, 2)), ("g2r", (2, 3))):
        wanted = expected(put, run, direction, size, ("a",))
        np.testing.assert_allclose(attribution_maps(run, direction)[0], wanted, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 3), st.permutations([0, 1, 2]))
def test_representation_and_order_of_samples_do_not_matter(tmp_path_factory, seed, steps, heads, order):
    place = tmp_path_factory.mktemp("runs")
    names = [f"s{index}" for index in order]
    found = []
    for number, (kind, samples) in enumerate([("factors", ["s0", "s1", "s2"]), ("scores", names)]):
        spec = layer(heads=heads, gen=(3, 4), ref=(2, 3), dtype="float32", representation=kind)

        def data(spec, sample, steps=steps, seed=seed):
            return factors(spec, steps, np.random.default_rng([seed, int(sample[1:])]))

        run, _ = build(place / f"{number}.zarr", [spec], steps, samples, data=data)
        found.append(
            [attribution_maps(run, way, samples=["s0", "s1", "s2"]).values for way in ("r2g", "g2r")]
        )
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", ["r2g", "g2r"])
@pytest.mark.parametrize(("level", "axis"), [("time", "time"), ("head", "head"), ("layer", "layer")])
def test_the_mean_over_a_level_is_the_unified_map(tmp_path, direction, level, axis):
    run, _ = build(tmp_path / "run.zarr", LAYERS, steps=6, samples=("one", "two"))
    maps = attribution_maps(run, direction, level, time_groups=3)
    assert maps.dims == ("sample", axis, "y", "x")
    np.testing.assert_allclose(maps.mean(axis), attribution_maps(run, direction), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", ["r2g", "g2r"])
@pytest.mark.parametrize("level", ["unified", "time", "head", "layer", "specific"])
def test_uniform_attention_is_exactly_one(tmp_path, direction, level):
    run, _ = build(tmp_path / "run.zarr", LAYERS, steps=7, data=uniform(7))
    at = (0, 0, 2, 2) if level == "specific" else None
    assert (attribution_maps(run, direction, level, at=at).values == 1).all()


def test_uneven_time_groups_are_means_of_their_steps(tmp_path):
    run, _ = build(tmp_path / "run.zarr", LAYERS, steps=7)
    maps = attribution_maps(run, "r2g", "time", time_groups=3)
    assert list(maps.time.values) == ["0-2", "3-4", "5-6"]
    np.testing.assert_allclose(maps[:, 1], attribution_maps(run, "r2g", steps=[3, 4]), rtol=1e-6)


def test_selections_of_steps_heads_and_layers(tmp_path):
    run, _ = build(tmp_path / "run.zarr", LAYERS, steps=4)
    by_head = attribution_maps(run, "g2r", "head", layers="a")
    np.testing.assert_allclose(attribution_maps(run, "g2r", heads=[1], layers="a"), by_head[:, 1], rtol=1e-6)
    by_layer = attribution_maps(run, "g2r", "layer", steps=slice(2, None))
    alone = attribution_maps(run, "g2r", layers=["b"], steps=[2, 3], size=by_layer.shape[-2:])
    np.testing.assert_allclose(by_layer.sel(layer="b"), alone, rtol=1e-6)


def test_a_resolution_doubled_by_repetition_leaves_the_densities_unchanged(tmp_path):
    small, large = layer("s", gen=(3, 4), ref=(2, 2)), layer("l", gen=(6, 8), ref=(2, 2))

    def data(spec, sample):
        query, key = factors(small, 3, np.random.default_rng(4))
        if spec.name == "l":
            grid = query.reshape(3, 2, 3, 4, 4).repeat(2, axis=2).repeat(2, axis=3)
            query = grid.reshape(3, 2, 48, 4)
        return query, key

    run, _ = build(tmp_path / "run.zarr", [small, large], data=data)
    coarse = attribution_maps(run, "r2g", layers="s").values
    fine = attribution_maps(run, "r2g", layers="l").values
    np.testing.assert_allclose(fine, coarse.repeat(2, 1).repeat(2, 2), rtol=1e-5)
    np.testing.assert_allclose(
        attribution_maps(run, "g2r", layers="l"), attribution_maps(run, "g2r", layers="s"), rtol=1e-5
    )


def test_specific_patches_are_the_rows_of_those_queries(tmp_path):
    run, put = build(tmp_path / "run.zarr", LAYERS[:1])
    scores = oracle.logits(*put["one", "a"], run.layers["a"].scale)
    patches = [(1, 2), (3, 0)]
    row = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True) * 6
    wanted = row[:, :, [1 * 3 + 2, 3 * 3 + 0]].mean((0, 1, 2)).reshape(3, 2)
    np.testing.assert_allclose(attribution_maps(run, "g2r", "specific", at=patches)[0], wanted, rtol=1e-4)
    mask = np.zeros((4, 3), bool)
    mask[1, 2] = mask[3, 0] = True
    np.testing.assert_allclose(attribution_maps(run, "g2r", "specific", at=mask)[0], wanted, rtol=1e-4)
    column = np.exp(scores) / np.exp(scores).sum(-2, keepdims=True) * 12
    wanted = column[..., 2 * 2 + 1].mean((0, 1)).reshape(4, 3)
    np.testing.assert_allclose(attribution_maps(run, "r2g", "specific", at=(2, 1))[0], wanted, rtol=1e-4)


def test_a_region_named_by_an_image_equals_its_mask(tmp_path):
    run, _ = build(tmp_path / "run.zarr", LAYERS, images=True)
    for direction, image in (("g2r", "mask"), ("r2g", "reference_mask"), ("g2r", "reference_mask")):
        mask = run.image(image, "one")[..., 0] > 127
        named = attribution_maps(run, direction, "specific", at=image)
        np.testing.assert_allclose(named, attribution_maps(run, direction, "specific", at=mask), rtol=1e-6)


@pytest.mark.parametrize(
    "spec", [layer("p", ref=(0, 0), ref_prefix=1, dtype="float32"), layer("p", ref=(1, 1), dtype="float32")]
)
def test_one_pooled_token_is_a_similarity_without_g2r(tmp_path, spec):
    run, put = build(tmp_path / "run.zarr", [spec])
    maps = attribution_maps(run, "r2g")
    assert maps.attrs["kind"] == "similarity"
    wanted = oracle.r2g(oracle.logits(*put["one", "p"], run.layers["p"].scale), spec.ref_prefix).mean((0, 1))
    np.testing.assert_allclose(maps[0].values.ravel(), wanted, rtol=1e-4)
    with pytest.raises(NoAnswer, match="only pooled tokens; ask for unified r2g"):
        attribution_maps(run, "g2r")
    with pytest.raises(NoAnswer, match="layer 'p'; expected reference tokens with a place"):
        attribution_maps(run, "g2r", layers=["p"])


def test_pooled_layers_are_left_out_where_others_can_answer(tmp_path):
    run, _ = build(tmp_path / "run.zarr", [*LAYERS, layer("p", ref=(1, 1))])
    maps = attribution_maps(run, "r2g")
    assert maps.attrs["left_out"] == ["p"]
    assert maps.attrs["kind"] == "attention"
    assert attribution_maps(run, "r2g", layers=["a", "p"]).attrs["kind"] == "mixed"


def test_building_the_graph_reads_nothing_and_any_scheduler_gives_the_same(tmp_path, monkeypatch):
    run, _ = build(tmp_path / "run.zarr", LAYERS, samples=("one", "two"))
    with monkeypatch.context() as patch:
        patch.setattr(type(run), "read", lambda *args, **kwargs: pytest.fail("the store was read"))
        maps = attribution_maps(run, "r2g", store=False)
    with dask.config.set(scheduler="synchronous"):
        one = maps.values
    with dask.config.set(scheduler="processes", num_workers=2):
        np.testing.assert_array_equal(attribution_maps(run, "r2g", store=False).values, one)
    with dask.config.set(scheduler="threads"):
        np.testing.assert_array_equal(attribution_maps(run, "r2g", store=False).values, one)
    assert not (tmp_path / "run.marginals.zarr").exists()


def test_maps_survive_a_round_trip_through_zarr(tmp_path):
    run, _ = build(tmp_path / "run.zarr", LAYERS, steps=5)
    maps = attribution_maps(run, "r2g", "time")
    maps.to_dataset(name="maps").to_zarr(tmp_path / "maps.zarr", zarr_format=3, consolidated=False)
    back = xr.open_zarr(tmp_path / "maps.zarr", consolidated=False)["maps"]
    xr.testing.assert_identical(back.compute(), maps.compute().rename("maps"))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"direction": "r2r"}, UnknownName, "unknown direction 'r2r'"),
        ({"level": "unifed"}, UnknownName, "did you mean 'unified'"),
        ({"protocol": "offical"}, UnknownName, "unknown protocol"),
        ({"layers": ["aa"]}, UnknownName, "unknown layer 'aa'"),
        ({"samples": ["on"]}, UnknownName, "did you mean 'one'"),
        ({"steps": [3]}, UnknownName, "unknown step 3; .*there are 3, from 0"),
        ({"heads": [0, 2]}, UnknownName, "unknown head 2"),
        ({"steps": slice(3, 1)}, InputError, "steps selects nothing.*3:1"),
        ({"layers": []}, InputError, "layers is empty"),
        (
            {"level": "time", "time_groups": 0},
            InputError,
            "time_groups; expected a whole number of 1 or more; got 0",
        ),
        ({"level": "time", "time_groups": 2.5}, InputError, "time_groups; expected a whole number.*got 2.5"),
        ({"resize": "cubic"}, UnknownName, "unknown resize 'cubic'.*did you mean 'bicubic'"),
        ({"at_pixels": (1, 1)}, NoAnswer, "in pixels of the reference; expected such images.*got none"),
        ({"at": (1, 1), "at_pixels": (1, 1)}, InputError, "a region; expected at or at_pixels; got both"),
        ({"size": (0, 4)}, InputError, r"size; expected \(rows, columns\)"),
        ({"size": 64}, InputError, r"size; expected \(rows, columns\)"),
        ({"level": "unified", "at": (1, 1)}, InputError, "at; expected a region at the specific level"),
        ({"level": "specific"}, InputError, "got nothing at level 'specific'"),
        ({"level": "specific", "at": (9, 9)}, InputError, "a row from 0 to 5 and a column from 0 to 3"),
        ({"level": "specific", "at": (2, 2, 1, 1)}, InputError, "box 2,2,1,1"),
        ({"level": "specific", "at": "maskk"}, UnknownName, "unknown image 'maskk'"),
        ({"level": "specific", "at": np.zeros((6, 4))}, NoAnswer, "empty region"),
        ({"level": "specific", "at": 1.5}, InputError, "at; expected"),
    ],
)
def test_bad_questions_are_refused_in_one_line(tmp_path, arguments, error, words):
    run, _ = build(tmp_path / "run.zarr", LAYERS)
    with pytest.raises(error, match=words) as caught:
        attribution_maps(run, **{"direction": "r2g", **arguments})
    assert "\n" not in str(caught.value)


def test_head_level_over_different_head_counts_has_no_answer(tmp_path):
    run, _ = build(tmp_path / "run.zarr", [layer("a", heads=2), layer("b", heads=3)])
    with pytest.raises(NoAnswer, match="a: 2, b: 3"):
        attribution_maps(run, "r2g", "head")
    assert attribution_maps(run, "r2g", "head", heads=[0, 1]).sizes["head"] == 2


def test_an_empty_run_is_refused(tmp_path):
    create_run(tmp_path / "run.zarr", LAYERS, [1, 2], ["one"]).close()
    with pytest.raises(EmptyRun, match="no committed sample"):
        attribution_maps(open_run(tmp_path / "run.zarr"), "r2g")
