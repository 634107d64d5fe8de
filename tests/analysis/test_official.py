"""The official protocol against the numbers of the paper's code, and against a literal loop."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from i2am.analysis.grids.resize import nearest
from i2am.analysis.maps import official
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.scores.imacs import imacs
from i2am.storage.errors import InputError, NoAnswer, ShapeMismatch, UnknownName
from tests.analysis import official_oracle, oracle
from tests.analysis.builders import build, disc, factors, layer

REFERENCE = Path(__file__).parent / "reference"
TOLERANCE = 1e-5
"""Largest difference, as a share of the reference's maximum."""


@cache
def numbers(name):
    with np.load(REFERENCE / f"{name}.npz") as file:
        return dict(file)


def assert_equal(found, wanted):
    assert found.shape == wanted.shape
    assert np.abs(np.asarray(found) - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def reference_run(path, name, static=True):
    """A run that holds a reference file's queries and keys."""
    data = numbers(name)
    specs, arrays = [], {}
    for layer_name in sorted(key[:-2] for key in data if key.endswith("_q")):
        query, key = data[f"{layer_name}_q"], data[f"{layer_name}_k"]
        grid = tuple(int(n) for n in data[f"{layer_name}_grid"])
        tokens = key.shape[2]
        ref = grid if tokens == grid[0] * grid[1] and tokens > 17 else (4, 4) if tokens == 17 else (0, 0)
        spec = layer(
            layer_name,
            heads=8,
            gen=grid,
            ref=ref,
            ref_prefix=tokens - ref[0] * ref[1],
            dtype="float32",
            representation="factors",
            static_key=static,
        )
        specs.append(spec)
        arrays[layer_name] = query, key if static else np.repeat(key, len(query), axis=0)
    run, _ = build(path, specs, 5, data=lambda spec, sample: arrays[spec.name])
    return run


@pytest.fixture(scope="module", params=[("r2g_single_token", True), ("r2g_patch_tokens", False)])
def r2g(request, tmp_path_factory):
    name, static = request.param
    return reference_run(tmp_path_factory.mktemp("r2g") / "run.zarr", name, static), numbers(name)


@pytest.fixture(scope="module")
def g2r(tmp_path_factory):
    return reference_run(tmp_path_factory.mktemp("g2r") / "run.zarr", "g2r_spatial"), numbers("g2r_spatial")


@pytest.mark.parametrize("level", ["unified", "time", "head"])
def test_r2g_equals_the_reference(r2g, level):
    run, wanted = r2g
    maps = attribution_maps(run, "r2g", level, protocol="official")
    assert maps.shape[-2:] == (64, 64)
    thinned = 64 // wanted[f"r2g_{level}"].shape[-1]
    assert_equal(maps[0, ..., ::thinned, ::thinned], wanted[f"r2g_{level}"])


@pytest.mark.parametrize("level", ["unified", "head"])
def test_g2r_equals_the_reference(g2r, level):
    run, wanted = g2r
    assert_equal(attribution_maps(run, "g2r", level, protocol="official")[0], wanted[f"g2r_{level}_layer04"])


def test_specific_maps_equal_the_reference(g2r):
    run, wanted = g2r
    for patch, expected in zip(wanted["sram_positions"][::4], wanted["sram_layer04"][::4], strict=True):
        at = (int(patch[0]), int(patch[1]))
        assert_equal(attribution_maps(run, "g2r", "specific", at=at, protocol="official")[0], expected)
    region = [(int(row), int(column)) for row, column in wanted["sram_positions"]]
    found = attribution_maps(run, "g2r", "specific", at=region, protocol="official")[0]
    assert_equal(found, wanted["sram_layer04"].mean(axis=0))


@pytest.mark.parametrize("direction", ["r2g", "g2r"])
def test_imacs_equals_the_reference(direction):
    data = numbers("imacs_official")
    found = imacs(data[f"{direction}_maps"], data[f"{direction}_masks"], direction, protocol="official")
    assert_equal(found, data[f"{direction}_imacs"])


SHAPES = settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def systems(draw):
    """Two layers of one or two heads; (layers, steps, seed)."""
    heads, ref = draw(st.integers(1, 2)), draw(GRIDS)
    prefix = draw(st.integers(0, 1)) if ref != (1, 1) else 1
    specs = [
        layer(
            name,
            heads=heads,
            gen=draw(GRIDS),
            ref=ref,
            ref_prefix=prefix,
            dtype=draw(st.sampled_from(["float16", "bfloat16", "float32"])),
            static_key=draw(st.booleans()),
            representation=draw(st.sampled_from(["factors", "scores"])),
        )
        for name in ("a", "b")
    ]
    return specs, draw(st.integers(1, 4)), draw(st.integers(0, 999))


def logits(run, put, sample="one"):
    """Logits of each layer as they are stored."""
    found = {}
    for name, spec in run.layers.items():
        scores = oracle.logits(*put[sample, name], spec.scale)
        found[name] = run.scores(name)[0].compute() if spec.representation == "scores" else scores
    return found


def queries(run, name):
    """Patches of a layer whose nearest patch of the largest grid is the first."""
    rows, columns = max((spec.gen_grid for spec in run.layers.values()), key=lambda grid: grid[0] * grid[1])
    height, width = run.layers[name].gen_grid
    return [
        y * width + x
        for y in range(height)
        for x in range(width)
        if y * rows // height == 0 and x * columns // width == 0
    ]


def random_run(path, system):
    specs, steps, seed = system
    rng = np.random.default_rng(seed)
    data = {spec.name: factors(spec, steps, rng, strength=2.5) for spec in specs}
    return build(path, specs, steps, data=lambda spec, sample: data[spec.name])


@SHAPES
@given(systems(), st.sampled_from(["unified", "time", "head", "layer"]), st.sampled_from([64, 2**25]))
def test_r2g_equals_the_loop(tmp_path_factory, monkeypatch, system, level, block_bytes):
    monkeypatch.setattr(official, "BLOCK_BYTES", block_bytes)  # 64: tokens one by one, steps one by one
    run, put = random_run(tmp_path_factory.mktemp("run") / "run.zarr", system)
    steps, size = range(len(run.timesteps)), (5, 6)
    groups = np.array_split(steps, min(2, len(steps))) if level == "time" else [steps]
    scores = logits(run, put)
    by_group = np.array(
        [
            [official_oracle.r2g_layer(scores[n], run.layers[n].gen_grid, size, g) for n in scores]
            for g in groups
        ]
    )  # (group, layer, head, y, x)
    axes = {"unified": (0, 1, 2), "time": (1, 2), "head": (0, 1), "layer": (0, 2)}[level]
    maps = attribution_maps(run, "r2g", level, size=size, time_groups=len(groups), protocol="official")
    np.testing.assert_allclose(maps[0], by_group.mean(axis=axes), rtol=1e-5, atol=1e-6)


@SHAPES
@given(systems(), st.sampled_from(["unified", "time", "head", "layer", "specific"]))
def test_g2r_equals_the_loop(tmp_path_factory, system, level):
    run, put = random_run(tmp_path_factory.mktemp("run") / "run.zarr", system)
    steps = range(len(run.timesteps))
    groups = np.array_split(steps, min(2, len(steps))) if level == "time" else [steps]
    by_group = np.array(
        [
            [
                official_oracle.g2r_layer(
                    scores,
                    run.layers[name].ref_prefix,
                    run.layers[name].ref_grid,
                    group,
                    queries(run, name) if level == "specific" else range(run.layers[name].gen),
                )
                for name, scores in logits(run, put).items()
            ]
            for group in groups
        ]
    )
    axes = {"time": (1, 2), "head": (0, 1), "layer": (0, 2)}.get(level, (0, 1, 2))
    at = (0, 0) if level == "specific" else None
    maps = attribution_maps(run, "g2r", level, time_groups=len(groups), at=at, protocol="official")
    np.testing.assert_allclose(maps[0], by_group.mean(axis=axes), rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 999), st.floats(0, 5), st.sampled_from(["r2g", "g2r"]), GRIDS)
def test_imacs_equals_the_loop(seed, penalty, direction, grid):
    image = np.random.default_rng(seed).random((grid[0] + 1, grid[1] + 1)) * 0.01
    mask = disc((16, 12), (7, 6), 4)
    wanted = official_oracle.imacs(image, mask, direction, penalty)
    assert imacs(image, mask, direction, penalty, "official") == pytest.approx(wanted, abs=1e-9)


def named(*names, **more):
    return [layer(name, **more) for name in names]


def default_layers(run, direction, **more):
    return attribution_maps(run, direction, protocol="official", **more).attrs["layers"]


def test_the_official_layers_are_asked_unless_others_are_named(tmp_path):
    unet = named("down_blocks.0.attn2", "mid_block.attn2", "up_blocks.1.attn2", ref=(0, 0), ref_prefix=1)
    warp = named("warp_flow_blks.3.attn2", "warp_flow_blks.4.attn2")
    run, _ = build(tmp_path / "a.zarr", [*unet, *warp])
    assert default_layers(run, "r2g") == ["down_blocks.0.attn2", "up_blocks.1.attn2"]
    assert default_layers(run, "g2r") == ["warp_flow_blks.4.attn2"]
    assert default_layers(run, "r2g", layers="mid_block.attn2") == ["mid_block.attn2"]
    assert attribution_maps(run, "r2g", protocol="official").attrs["left_out"] == [
        "mid_block.attn2",
        "warp_flow_blks.3.attn2",
        "warp_flow_blks.4.attn2",
    ]
    run, _ = build(tmp_path / "b.zarr", named("middle_block.1.attn2"))
    for direction in ("r2g", "g2r"):
        with pytest.raises(NoAnswer, match="outside the middle block.*name the layers"):
            attribution_maps(run, direction, protocol="official")
    run, _ = build(tmp_path / "c.zarr", unet)
    with pytest.raises(NoAnswer, match="whose reference tokens have a place"):
        attribution_maps(run, "g2r", protocol="official")


def test_selections_of_steps_and_heads(tmp_path):
    run, _ = build(tmp_path / "run.zarr", [layer(heads=3)], steps=4)
    for direction in ("r2g", "g2r"):
        heads = attribution_maps(run, direction, "head", steps=[1, 3], heads=[2, 0], protocol="official")
        assert list(heads["head"].values) == [2, 0]
        whole = attribution_maps(run, direction, steps=[1, 3], heads=[0, 2], protocol="official")
        np.testing.assert_allclose(heads.mean("head"), whole, rtol=1e-5)
        some = attribution_maps(run, direction, steps=[1, 3], protocol="official")
        times = attribution_maps(
            run, direction, "time", time_groups=4, protocol="official", size=some.shape[1:]
        )
        if direction == "g2r":  # without a resize, sums over steps add up
            np.testing.assert_allclose(times[:, 1] + times[:, 3], some, rtol=1e-5)
        assert times.sizes["time"] == 4


def test_a_mask_goes_to_the_layer_by_its_nearest_pixels(tmp_path):
    run, put = build(tmp_path / "run.zarr", [layer(gen=(4, 3))], images=True)
    mask = run.image("mask", "one")[..., 0] > 127
    small = np.array([[mask[y * 24 // 4, x * 18 // 3] for x in range(3)] for y in range(4)])
    np.testing.assert_array_equal(nearest(mask, (4, 3)), small)
    scores = oracle.logits(*put["one", "a"], run.layers["a"].scale)
    queries = np.flatnonzero(small)
    assert 0 < len(queries) < 12
    wanted = official_oracle.g2r_layer(scores, 0, (3, 2), range(3), queries).mean(axis=0)
    for at in ("mask", mask):
        found = attribution_maps(run, "g2r", "specific", at=at, protocol="official")
        np.testing.assert_allclose(found[0], wanted, rtol=1e-4)


def test_the_result_says_what_it_is(tmp_path):
    run, _ = build(tmp_path / "run.zarr", [layer()])
    maps = attribution_maps(run, "r2g", protocol="official")
    assert maps.attrs["protocol"] == "official"
    assert maps.attrs["units"] == "softmax probability, summed over steps"
    assert "density" in attribution_maps(run, "r2g").attrs["units"]
    scores = imacs(maps, disc((16, 12), (7, 6), 4), protocol="official")
    assert isinstance(scores, xr.DataArray)
    assert (scores.attrs["protocol"], scores.attrs["maps_protocol"]) == ("official", "official")
    assert imacs(maps, disc((16, 16), (7, 6), 4)).attrs["maps_protocol"] == "official"


def test_it_is_lazy_and_any_scheduler_gives_the_same(tmp_path, monkeypatch):
    run, _ = build(tmp_path / "run.zarr", [layer("a"), layer("b", gen=(8, 6))], samples=("one", "two"))
    for direction in ("r2g", "g2r"):
        with monkeypatch.context() as patch:
            patch.setattr(type(run), "read", lambda *args, **kwargs: pytest.fail("the store was read"))
            maps = attribution_maps(run, direction, protocol="official", store=False)
        with dask.config.set(scheduler="synchronous"):
            one = maps.values
        with dask.config.set(scheduler="processes", num_workers=2):
            np.testing.assert_array_equal(maps.values, one)
        both = dask.compute(maps, attribution_maps(run, direction, size=maps.shape[-2:], store=False))
        assert not np.array_equal(both[0], both[1])  # protocols share no task


def test_logits_that_overflow_give_nan(tmp_path):
    run, _ = build(
        tmp_path / "run.zarr",
        [layer(dtype="float32", head_dim=1)],
        data=lambda spec, sample: (
            np.full((3, 2, spec.gen, 1), 3e38, np.float32),
            np.full((1, 2, spec.ref, 1), 3e38, np.float32),
        ),
    )
    assert np.isnan(attribution_maps(run, "r2g", protocol="official")).all()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"direction": "r2g", "level": "specific", "at": (0, 0)},
            NoAnswer,
            "no specific map on the generated",
        ),
        ({"direction": "g2r", "layers": ["a", "b"]}, NoAnswer, "got 2x2, 3x2; select layers of one grid"),
        ({"direction": "g2r", "layers": "a", "size": (9, 9)}, InputError, "size; expected 3 x 2"),
        ({"direction": "r2g", "level": "time", "time_groups": 0}, InputError, "time_groups"),
    ],
)
def test_bad_questions_are_refused_in_one_line(tmp_path, arguments, error, words):
    run, _ = build(tmp_path / "run.zarr", [layer("a"), layer("b", ref=(2, 2))])
    with pytest.raises(error, match=words) as caught:
        attribution_maps(run, **arguments, protocol="official")
    assert "\n" not in str(caught.value)


def test_bad_masks_and_protocols_are_refused():
    maps = np.random.default_rng(0).random((8, 8))
    with pytest.raises(UnknownName, match="did you mean 'official'"):
        imacs(maps, np.ones((16, 12)), "r2g", protocol="oficial")
    for mask in (np.ones((16, 12)), np.zeros((16, 12))):
        with pytest.raises(NoAnswer, match="inside and some outside"):
            imacs(maps, mask, "g2r", protocol="official")
    with pytest.raises(ShapeMismatch, match="masks"):
        imacs(np.stack([maps] * 3), np.ones((2, 16, 12)), "r2g", protocol="official")
    assert np.isnan(imacs(np.full((8, 8), np.nan), disc((16, 12), (7, 6), 4), "g2r", protocol="official"))
