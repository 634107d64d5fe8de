"""How arrays are cut: arithmetic that must hold for any geometry."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.storage.errors import InputError
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.layout import MAX_CHUNK, TARGET_CHUNK, group_steps, layer_layouts, restore_layout
from i2am.storage.writing.plan import plan

GEOMETRY = st.builds(
    LayerSpec,
    name=st.just("l"),
    heads=st.integers(1, 24),
    head_dim=st.integers(1, 160),
    gen_grid=st.tuples(st.integers(1, 96), st.integers(1, 96)),
    ref_grid=st.tuples(st.integers(1, 96), st.integers(1, 96)),
    ref_prefix=st.integers(0, 3),
    representation=st.sampled_from(["factors", "scores"]),
    static_key=st.booleans(),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    lse=st.booleans(),
)


@settings(max_examples=200)
@given(GEOMETRY, st.integers(1, 100), st.integers(1, 1 << 28))
def test_every_cut_covers_its_array(spec, steps, shard_bytes):
    for layout in layer_layouts(spec.resolve(steps), 3, steps, "none", shard_bytes).values():
        length = layout.shape[1]
        assert layout.chunk[0] == layout.shard[0] == 1
        assert layout.chunk[3:] == layout.shape[3:]
        assert layout.shard[2] == layout.shape[2]
        assert layout.shard[1] % layout.chunk[1] == layout.shard[2] % layout.chunk[2] == 0
        groups = [layout.groups(shard) for shard in range(layout.shards)]
        assert min(groups) >= 1
        assert (sum(groups) - 1) * layout.chunk[1] < length <= sum(groups) * layout.chunk[1]
        assert len(set(layout.keys(1))) == layout.shards
        assert restore_layout(layout, layout.to_json()) == layout
        one_head = prod(layout.shape[3:]) * np.dtype(layout.dtype).itemsize
        assert layout.chunk_bytes <= max(MAX_CHUNK, one_head, 2 * TARGET_CHUNK)


@given(st.integers(1, 200), st.integers(1, 1 << 22))
def test_grouping_steps_leaves_little_room_unused(steps, step_bytes):
    n = group_steps(steps, step_bytes)
    assert 1 <= n <= steps
    assert n == 1 or n * step_bytes <= 2 * TARGET_CHUNK
    unused = -steps % n
    assert unused / steps <= 0.15


@pytest.mark.parametrize(
    "stored",
    [
        {"chunk": [1, 3, 2, 4, 4], "shard": [1, 4, 2, 4, 4]},
        {"chunk": [1, 1, 2, 4, 4], "shard": [1, 40, 2, 4, 4]},
        {"chunk": [1, 1, 2, 2, 4], "shard": [1, 4, 2, 4, 4]},
        {"chunk": [1, 0, 2, 4, 4], "shard": [1, 4, 2, 4, 4]},
        {"chunk": [1, 1, 2, 4], "shard": [1, 4, 2, 4, 4]},
    ],
)
def test_a_stored_cut_that_does_not_fit_is_refused(stored):
    layer = LayerSpec("l", 2, 4, (2, 2), (2, 2), representation="factors").resolve(4)
    base = layer_layouts(layer, 1, 4, "none", 1 << 20)["query"]
    with pytest.raises(ValueError, match="do not fit shape"):
        restore_layout(base, {**stored, "codec": "none"})


def test_a_chunk_beyond_the_codecs_limit_is_refused():
    with pytest.raises(
        InputError,
        match=r'one head of one step; expected at most .* store the layer as representation="factors"',
    ):
        plan([LayerSpec("l", 1, 8, (256, 256), (256, 256), representation="scores")], [0], ["a"])


def warp_layers(representation):
    sizes = [((16, 12), 160)] * 3 + [((32, 24), 80)] * 3 + [((64, 48), 40)] * 3
    return [
        LayerSpec(f"warp.{i}", 8, dim, grid, grid, representation=representation)
        for i, (grid, dim) in enumerate(sizes)
    ]


def unet_layers(side, ref, representation):
    depths = [0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    return [
        LayerSpec(
            f"l{i}", 8, 40 * 2 ** min(d, 2), (side >> d, side >> d), ref, 1, representation=representation
        )
        for i, d in enumerate(depths)
    ]


@pytest.mark.parametrize(
    "layers",
    [
        warp_layers("auto"),
        warp_layers("scores"),
        unet_layers(64, (16, 16), "factors"),
        unet_layers(64, (16, 16), "scores"),
        unet_layers(96, (12, 12), "scores"),
        unet_layers(64, (0, 0), "auto"),
    ],
    ids=["warp", "warp-scores", "ip-factors", "ip-scores", "seesr-scores", "pooled"],
)
def test_files_per_sample_stay_below_64(layers):
    images = dict.fromkeys(["source", "reference", "mask", "generated"], (512, 512, 3))
    assert plan(layers, range(50), ["a"], images).sample_files < 64


def test_stableviton_s_24_gigabytes_need_little_more_than_one():
    predicted = plan(warp_layers("auto"), range(50), ["a"])
    assert predicted.score_bytes == pytest.approx(24e9, rel=0.05)
    assert predicted.sample_bytes < 1.35e9
