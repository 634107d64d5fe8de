from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.pipeline.embedded.scenes import SIZE, bounding_box, make_scene
from i2am.pipeline.embedded.shapes import PATTERNS, SILHOUETTES

seeds = st.integers(0, 2**40)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_a_scene_is_its_seed(seed):
    one, two = make_scene(seed), make_scene(seed)
    for name in ("source", "mask", "reference", "target", "target_object", "reference_object"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.object == two.object
    assert not np.array_equal(one.reference, make_scene(seed + 1).reference)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_the_truth_holds(seed):
    scene = make_scene(seed)
    assert scene.source.shape == scene.reference.shape == scene.target.shape == (SIZE, SIZE, 3)
    changed = (scene.source != scene.target).any(axis=-1)
    # The object's soft edge is half a pixel wide; the hole has a margin of one pixel or more.
    assert not (changed & ~scene.mask).any()
    assert (scene.target_object & ~scene.mask).sum() == 0
    assert (changed[scene.target_object]).mean() > 0.5
    for mask, box in ((scene.target_object, scene.target_box), (scene.reference_object, scene.reference_box)):
        top, left, bottom, right = box
        assert mask[top:bottom, left:right].sum() == mask.sum() > 0
        assert mask[top].any()
        assert mask[bottom - 1].any()
        assert mask[:, left].any()
        assert mask[:, right - 1].any()
    assert 0.02 < scene.reference_object.mean() < 0.25


def test_objects_keep_their_colours_between_the_two_pictures():
    scenes = [make_scene(seed) for seed in range(200)]
    there = np.stack([s.reference[s.reference_object].mean(0) for s in scenes])
    here = np.stack([s.target[s.target_object].mean(0) for s in scenes])
    for channel in range(3):
        assert np.corrcoef(there[:, channel], here[:, channel])[0, 1] > 0.97
        assert abs(np.corrcoef(np.roll(there, 1, 0)[:, channel], here[:, channel])[0, 1]) < 0.3


def test_every_shape_and_pattern_occurs():
    things = [make_scene(seed).object for seed in range(300)]
    assert {thing.silhouette for thing in things} == set(SILHOUETTES)
    assert {thing.pattern for thing in things} == set(PATTERNS)


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="at least one True pixel"):
        bounding_box(np.zeros((4, 4), bool))
