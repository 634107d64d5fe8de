"""Tiled layers put together: against a literal loop, and against what untiled layers give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2am.analysis.grids.resize import linear
from i2am.analysis.grids.tiled_layers import crop_to_tile, untiled_name
from i2am.analysis.maps.attribution import attribution_maps
from i2am.storage.errors import InputError, NoAnswer
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.tile import Tile
from i2am.storage.reading.open import open_run
from i2am.storage.writing.create import create_run

CANVAS = (12, 8)
CORNERS = [(top, left) for left in (0, 2) for top in (0, 4, 6)]


def tiled(name="net", corners=CORNERS, *, own=True, side=6):
    """Layers of 6 x 6 latents, 3 x 3 patches on both sides; ``own``: each sees its part of the reference."""
    found = []
    for top, left in corners:
        tile = Tile(top, left, side, side, *CANVAS)
        sizes = {"gen_grid": (3, 3), "ref_grid": (3, 3) if own else (4, 4), "heads": 2, "head_dim": 4}
        stored = {"static_key": False, "dtype": "float32", "representation": "factors"}
        tiles = {"tile": tile, "ref_tile": tile if own else None}
        found.append(LayerSpec(f"{name}@tile-{top}-{left}", **sizes, **stored, **tiles))
    return found


def write(path, layers, make, steps=2):
    times = list(range(steps, 0, -1))
    mask = np.zeros((24, 16, 1), np.uint8)
    mask[:8, :8] = 255
    with (
        create_run(path, layers, times, ["a"], image_shapes={"mask": mask.shape}) as run,
        run.sample("a") as sink,
    ):
        sink.put_image("mask", mask)
        for number, spec in enumerate(layers):
            for step in range(steps):
                query, key = make(number, step, spec)
                sink.put(spec.name, step, query=query, key=key)
    return open_run(path)


def random(number, step, spec):
    rng = np.random.default_rng((number, step))
    sizes = ((spec.heads, n, spec.head_dim) for n in (spec.gen, spec.ref))
    return tuple(2 * rng.standard_normal(size).astype(np.float32) for size in sizes)


def densities(run, spec, axis):
    """Mean density over steps, heads and the other side's tokens, [y, x] of a layer: a literal softmax."""
    scores = run.scores(spec.name).compute()[0].astype(np.float64)
    power = np.exp(scores - scores.max(axis, keepdims=True))
    values = power / power.sum(axis, keepdims=True) * scores.shape[axis]
    other = 3 if axis == 2 else 2
    grid = spec.gen_grid if axis == 2 else spec.ref_grid
    return values.mean((0, 1, other)).reshape(grid)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("direction", ["r2g", "g2r"])
def test_maps_equal_a_literal_loop(tmp_path, direction, own):
    layers = tiled(own=own)
    run = write(tmp_path / "r.zarr", layers, random)
    axis = 2 if direction == "r2g" else 3
    total, count = np.zeros(CANVAS), np.zeros(CANVAS)
    plain = []
    for spec in layers:
        values = densities(run, spec, axis)
        large = linear(values[None], (6, 6))[0]
        for row in range(6):
            for column in range(6):
                total[spec.tile.top + row, spec.tile.left + column] += large[row, column]
                count[spec.tile.top + row, spec.tile.left + column] += 1
        plain.append(values)
    shared = direction == "g2r" and not own
    expected = np.mean(plain, axis=0) if shared else total / count
    found = attribution_maps(run, direction)
    assert found.shape == (1, *expected.shape)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)
    by_layer = attribution_maps(run, direction, "layer")
    assert list(by_layer["layer"].values) == ["net"]
    np.testing.assert_allclose(by_layer[0, 0], expected, rtol=1e-5, atol=1e-5)
    for level in ("time", "head"):
        groups = {"time_groups": 2} if level == "time" else {}
        several = attribution_maps(run, direction, level, **groups)
        np.testing.assert_allclose(several[0].mean(level), expected, rtol=1e-5, atol=1e-5)


def test_uniform_attention_is_exactly_one_everywhere(tmp_path):
    zeros = lambda number, step, spec: tuple(np.zeros_like(x) for x in random(number, step, spec))  # noqa: E731
    run = write(tmp_path / "r.zarr", tiled(), zeros)
    for direction in ("r2g", "g2r"):
        for level in ("unified", "time", "head", "layer"):
            groups = {"time_groups": 2} if level == "time" else {}
            assert (attribution_maps(run, direction, level, **groups) == 1).all()


def test_one_tile_that_is_the_whole_canvas_changes_nothing(tmp_path):
    spec = tiled(corners=[(0, 0)])[0]
    whole = replace(spec, tile=Tile(0, 0, 6, 6, 6, 6), ref_tile=Tile(0, 0, 6, 6, 6, 6))
    plain = replace(spec, name="net", tile=None, ref_tile=None)
    one, other = (write(tmp_path / f"{s.name}.zarr", [s], random) for s in (whole, plain))
    for direction in ("r2g", "g2r"):
        found = attribution_maps(one, direction)
        np.testing.assert_allclose(found, attribution_maps(other, direction, size=(6, 6)), rtol=1e-6)


def test_a_region_takes_the_tiles_that_it_lies_on(tmp_path):
    run = write(tmp_path / "r.zarr", tiled(), random)
    corner = attribution_maps(run, "g2r", "specific", at=(0, 0))
    assert (corner[0, 6:] == 0).all()  # the tile at the corner alone, 6 x 6 latents, sees this patch
    assert (corner[0, :, 6:] == 0).all()
    weights = densities_of_row(run, "net@tile-0-0", 0)
    np.testing.assert_allclose(corner[0, :6, :6], linear(weights[None], (6, 6))[0], rtol=1e-5, atol=1e-5)
    named = attribution_maps(run, "g2r", "specific", at="mask")
    assert np.isfinite(named).all()


def densities_of_row(run, layer, row):
    scores = run.scores(layer).compute()[0, :, :, row].astype(np.float64)
    power = np.exp(scores - scores.max(-1, keepdims=True))
    return (power / power.sum(-1, keepdims=True) * scores.shape[-1]).mean((0, 1)).reshape(3, 3)


def test_layers_are_asked_by_the_name_of_the_whole(tmp_path):
    plain = LayerSpec("other", 2, 4, (3, 3), (3, 3), static_key=False, dtype="float32")
    run = write(tmp_path / "r.zarr", [*tiled(), plain], random)
    whole = attribution_maps(run, "r2g", layers=["net"])
    assert len(whole.attrs["layers"]) == len(CORNERS)
    np.testing.assert_array_equal(whole, attribution_maps(run, "r2g", layers="n*t"))
    both = attribution_maps(run, "r2g", "layer")
    assert list(both["layer"].values) == ["net", "other"]
    np.testing.assert_allclose(both.sel(layer="net"), whole, rtol=1e-6)
    with pytest.raises(NoAnswer, match=r"a map of layer 'net'.*cover the whole picture; got 1 that leave"):
        attribution_maps(run, "r2g", layers="net@tile-0-0")
    with pytest.raises(NoAnswer, match="official protocol for layer 'net@tile-0-0'"):
        attribution_maps(run, "r2g", layers="net", protocol="official")


def test_names_keep_their_role():
    spec = replace(tiled()[0], name="net@tile-0-0@uncond", role="uncond")
    assert untiled_name(spec) == "net@uncond"


@given(st.integers(1, 4), st.integers(0, 6), st.integers(0, 2))
def test_the_part_of_a_mask_is_where_the_tile_lies(factor, top, left):
    rows, columns = np.indices((12 * factor, 8 * factor)) // factor
    tile = Tile(top, left, 6, 6, *CANVAS)
    part = crop_to_tile((rows * 100 + columns).astype(float), tile)
    assert part.shape == (6 * factor, 6 * factor)
    assert (part[0, 0], part[-1, -1]) == (top * 100 + left, (top + 5) * 100 + left + 5)


@given(st.lists(st.integers(-3, 9), min_size=6, max_size=6))
def test_a_tile_is_a_rectangle_inside_its_canvas(numbers):
    top, left, rows, columns, height, width = numbers
    inside = top >= 0 <= left and rows > 0 < columns and top + rows <= height and left + columns <= width
    if inside:
        spec = LayerSpec("a", 1, 1, (1, 1), (1, 1), tile=numbers, ref_tile=np.array(numbers).tolist())
        assert spec.tile == Tile(*np.array(numbers)) == spec.ref_tile
        assert LayerSpec.from_json(spec.to_json()) == spec
    else:
        with pytest.raises(InputError, match=r"layer 'a': tile; expected None or a rectangle"):
            LayerSpec("a", 1, 1, (1, 1), (1, 1), tile=numbers)


def test_other_guidance_roles_are_not_averaged_in_unasked(tmp_path):
    layer = LayerSpec("net", 2, 4, (3, 3), (3, 3), static_key=False, dtype="float32")
    run = write(tmp_path / "r.zarr", [layer, replace(layer, name="net@uncond", role="uncond")], random)
    whole = attribution_maps(run, "r2g")
    assert whole.attrs["layers"] == ["net"]
    assert whole.attrs["left_out"] == ["net@uncond"]
    other = attribution_maps(run, "r2g", layers="net@uncond")
    assert abs(whole - other).max() > 0.01
    both = attribution_maps(run, "r2g", "layer", layers=["net", "net@uncond"])
    assert list(both["layer"].values) == ["net", "net@uncond"]
