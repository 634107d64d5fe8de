"""DAAM's baseline and the joint softmax, against literal loops."""

from __future__ import annotations

import numpy as np
import pytest

from i2am.analysis.aggregations.daam import daam_maps
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.scores.imacs import imacs
from i2am.storage.errors import InputError, NoAnswer, UnknownName
from i2am.storage.reading.open import open_run
from i2am.storage.writing.create import create_run
from tests.analysis import builders, oracle

GRIDS = {"gen": (4, 3), "ref": (3, 2)}


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """A run of a joint softmax: keys of the reference, and others that only `lse` knows of."""
    path = tmp_path_factory.mktemp("joint") / "run.zarr"
    rng = np.random.default_rng(3)
    layers = [
        builders.layer("a", **GRIDS, lse=True, dtype="float32"),
        builders.layer("plain", **GRIDS, dtype="float32"),
    ]
    shapes = {name: image.shape for name, image in builders.pictures(rng).items()}
    every = {}
    with (
        create_run(path, layers, [900, 800], ["one"], image_shapes=shapes) as writer,
        writer.sample("one") as sink,
    ):
        for name, image in builders.pictures(rng).items():
            sink.put_image(name, image)
        for spec in layers:
            key = rng.normal(size=(spec.heads, spec.ref + 5, spec.head_dim)).astype(np.float32)
            for step in range(2):
                query = rng.normal(size=(spec.heads, spec.gen, spec.head_dim)).astype(np.float32) * 2
                logits = np.einsum("hgd,hrd->hgr", query, key).astype(np.float64) * spec.head_dim**-0.5
                every[spec.name, step] = logits
                more = {"lse": np.logaddexp.reduce(logits, axis=-1).astype(np.float32)} if spec.lse else {}
                sink.put(spec.name, step, query=query, key=key[:, : spec.ref], **more)
    return open_run(path), every


def joint_probabilities(every):
    """(step, head, gen, ref): of the reference's keys among all keys."""
    found = []
    for step in range(2):
        rows = every["a", step]
        found.append([[oracle.softmax(row)[:6] for row in head] for head in rows])
    return np.array(found)


def test_the_share_of_the_reference_and_maps_that_are_not_renormalised(joint):
    run, every = joint
    p = joint_probabilities(every)
    share = attribution_maps(run, "r2g", method="joint")
    np.testing.assert_allclose(share.values[0], p.sum(-1).mean((0, 1)).reshape(4, 3), rtol=1e-5)
    assert share.attrs["units"].startswith("share")
    assert share.attrs["left_out"] == ["plain"]
    g2r = attribution_maps(run, "g2r", method="joint")
    np.testing.assert_allclose(g2r.values[0], 6 * p.mean((0, 1, 2)).reshape(3, 2), rtol=1e-5)
    np.testing.assert_allclose(g2r.mean(), share.mean(), rtol=1e-5)
    heads = attribution_maps(run, "r2g", "head", method="joint")
    np.testing.assert_allclose(heads.mean("head").values, share.values, rtol=1e-5)


@pytest.mark.parametrize("direction", ["r2g", "g2r"])
def test_attention_is_the_name_of_the_plain_method(joint, direction):
    named, plain = (attribution_maps(joint[0], direction, method=method) for method in ("attention", None))
    np.testing.assert_array_equal(named, plain)
    assert named.attrs == plain.attrs


def test_joint_maps_of_a_region(joint):
    run, every = joint
    p = joint_probabilities(every)
    tokens = attribution_maps(run, "r2g", "specific", at=[(0, 1), (2, 0)], method="joint")
    np.testing.assert_allclose(tokens.values[0], p[..., [1, 4]].sum(-1).mean((0, 1)).reshape(4, 3), rtol=1e-5)
    patch = attribution_maps(run, "g2r", "specific", at=(1, 2), method="joint")
    np.testing.assert_allclose(patch.values[0], 6 * p[:, :, 5].mean((0, 1)).reshape(3, 2), rtol=1e-5)
    painted = attribution_maps(run, "g2r", "specific", at="mask", method="joint")
    share = attribution_maps(run, "r2g", "specific", at="reference_mask", method="joint")
    assert painted.attrs["at"] == "mask"
    assert ((share > 0) & (share < 1)).all()


def test_without_the_log_sum_exp_there_is_no_share(joint, tmp_path):
    run, _ = joint
    with pytest.raises(NoAnswer, match="captured with lse"):
        attribution_maps(run, "r2g", method="joint", layers="plain")
    with pytest.raises(NoAnswer, match="leave this layer out"):
        attribution_maps(run, "r2g", method="joint", layers=["a", "plain"])
    plain, _ = builders.build(tmp_path / "run.zarr", [builders.layer()])
    with pytest.raises(NoAnswer, match="leave the method out"):
        attribution_maps(plain, "g2r", method="joint")


def own_probabilities(every, layer):
    """(step, head, gen, ref): softmax over the reference tokens alone."""
    return np.array(
        [[[oracle.softmax(row[:6]) for row in head] for head in every[layer, step]] for step in range(2)]
    )


def test_daam_one_map_for_each_token_and_their_average(joint):
    run, every = joint
    p = np.mean([own_probabilities(every, layer) for layer in ("a", "plain")], axis=0)
    found = daam_maps(run, [4, 0])
    assert found.dims == ("sample", "token", "y", "x")
    assert list(found["token"].values) == [4, 0]
    for row, token in enumerate((4, 0)):
        expected = 6 * p[..., token].mean((0, 1)).reshape(4, 3)
        np.testing.assert_allclose(found.values[0, row], expected, rtol=1e-5)
    np.testing.assert_allclose(daam_maps(run, range(6), average=True), 1, rtol=1e-5)
    first = daam_maps(run, 0, steps=0, heads=1, layers="a")
    exact = 6 * own_probabilities(every, "a")[0, 1, :, 0].reshape(4, 3)
    np.testing.assert_allclose(first.values[0, 0], exact, rtol=1e-5)


def test_daam_of_a_region_comes_from_the_marginals(joint):
    run, every = joint
    p = np.mean([own_probabilities(every, layer) for layer in ("a", "plain")], axis=0)
    found = attribution_maps(run, "r2g", "specific", at=[(0, 1), (2, 0)], method="daam")
    expected = 6 * p[..., [1, 4]].mean(-1).mean((0, 1)).reshape(4, 3)
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-5)
    # The object's tokens, from the derived store, and measured anew.
    stored = attribution_maps(run, "r2g", "specific", at="reference_mask", method="daam")
    mask = run.image("reference_mask", "one")[..., 0] > 127
    measured = attribution_maps(run, "r2g", "specific", at=mask, method="daam")
    np.testing.assert_allclose(stored.values, measured.values, rtol=1e-6)
    assert imacs(stored, run.image("mask", "one")[..., 0]).shape == (1,)


def test_daam_over_all_tokens_or_of_one_pooled_token_is_constant(joint, tmp_path):
    run, _ = joint
    assert (attribution_maps(run, "r2g", method="daam").values == 1).all()
    pooled, _ = builders.build(tmp_path / "run.zarr", [builders.layer(ref=(0, 0), ref_prefix=1)])
    found = daam_maps(pooled, 0)
    assert (found.values == 1).all()
    assert found.attrs["constant"]
    assert found.attrs["kind"] == "similarity"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ({"method": "dam"}, UnknownName, "dam"),
        ({"method": "daam", "direction": "g2r"}, NoAnswer, "generated image"),
        ({"method": "joint", "protocol": "official"}, NoAnswer, "corrected"),
    ],
)
def test_questions_without_an_answer(joint, call, error, words):
    with pytest.raises(error, match=words):
        attribution_maps(joint[0], **({"direction": "r2g"} | call))


@pytest.mark.parametrize("tokens", [[], [-1], [0.5], 6])
def test_tokens_that_do_not_exist(joint, tokens):
    with pytest.raises(InputError):
        daam_maps(joint[0], tokens)
