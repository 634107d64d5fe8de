"""Layers that share a query: stored once, read as if each had its own, refused where they cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from i2am.storage.errors import DamagedRun, InputError
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.open import open_run
from i2am.storage.tools.prune import prune
from i2am.storage.tools.verify import verify
from i2am.storage.writing.create import create_run, resume_run
from i2am.storage.writing.plan import plan
from tests.storage.forge import forge_root

STEPS = [9, 5, 1]
OWNER = LayerSpec("joint", 4, 32, (8, 8), (6, 6), static_key=False, lse=True, representation="factors")
OTHER = replace(OWNER, name="joint@reference-1", ref_grid=(5, 7), reference="reference-1", query_of="joint")
WORDS = replace(OWNER, name="joint@text", ref_grid=(0, 0), ref_prefix=40, reference="text", query_of="joint")
LAYERS = (OWNER, OTHER, WORDS)


def draw(shape, *seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float16)


def arrays(number, spec, step):
    """What a layer is given at a step; all have the query of layer 0."""
    found = {
        "query": draw((4, 64, 32), 0, step),
        "key": draw((4, spec.ref, 32), 1, number, step),
        "lse": draw((4, 64), 2, step).astype(np.float32),
    }
    if spec.query_of:
        del found["query"]
    return found


@pytest.fixture
def made(tmp_path):
    with create_run(tmp_path / "r.zarr", LAYERS, STEPS, ["a", "b"]) as writer:
        for sample in ("a", "b"):
            with writer.sample(sample) as sink:
                for step in range(3):
                    for number, spec in enumerate(LAYERS):
                        sink.put(spec.name, step, **arrays(number, spec, step))
    return open_run(tmp_path / "r.zarr")


def logits(number, spec, step):
    query, key = draw((4, 64, 32), 0, step), draw((4, spec.ref, 32), 1, number, step)
    return np.float32(spec.logit_scale) * query.astype(np.float32) @ key.astype(np.float32).transpose(0, 2, 1)


def test_every_layer_reads_the_query_that_is_stored_once(made, tmp_path):
    for number, spec in enumerate(LAYERS):
        wanted = np.stack([logits(number, spec, step) for step in range(3)])
        for found in made.scores(spec.name).compute():
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
        part = made.read(spec.name, "b", [2, 0], [3]).logits()
        np.testing.assert_allclose(part, wanted[[2, 0]][:, [3]], rtol=1e-6, atol=1e-6)
    assert verify(made.path).ok
    folder = tmp_path / "r.zarr" / "attention" / OTHER.name
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["key", "lse"]
    alone = plan([replace(spec, query_of="") for spec in LAYERS], STEPS, ["a"], codec="none")
    shared = plan(LAYERS, STEPS, ["a"], codec="none")
    query = 4 * 64 * 32 * 2 * 3
    assert 2 * query < alone.sample_bytes - shared.sample_bytes < 2.1 * query
    assert made.layers[OTHER.name].query_of == "joint"


@pytest.mark.parametrize("kept", [["*reference-1", "*text"], ["*text"], ["joint", "*text"]])
def test_a_pruned_run_keeps_the_query_of_a_layer_that_is_left_out(made, tmp_path, kept):
    small = prune(made, tmp_path / "p.zarr", layers=kept, steps=[0, 2], heads=[1, 2])
    owners = [spec.query_of for spec in small.layers.values()]
    assert owners == ["", next(iter(small.layers))][: len(kept)]
    for name in small.layers:
        old = made.scores(name).compute()[:, [0, 2]][:, :, [1, 2]]
        np.testing.assert_array_equal(small.scores(name).compute(), old)
    assert verify(tmp_path / "p.zarr").ok


def test_layers_stored_as_scores_share_nothing(tmp_path):
    scores = replace(OTHER, representation="scores")
    with create_run(tmp_path / "r.zarr", [OWNER, scores], [1], ["a"]) as writer, writer.sample("a") as sink:
        sink.put("joint", 0, **arrays(0, OWNER, 0))
        sink.put(scores.name, 0, **(arrays(1, scores, 0) | {"query": draw((4, 64, 32), 0, 0)}))
    run = open_run(tmp_path / "r.zarr")
    assert run.layers[scores.name].query_of == ""
    np.testing.assert_allclose(run.scores(scores.name)[0, 0], logits(1, OTHER, 0), rtol=2e-3, atol=2e-3)
    resume_run(tmp_path / "r.zarr", [OWNER, scores], [1]).close()
    few = replace(OWNER, representation="scores"), OTHER
    assert plan(few, [1], ["a"]).layers[1].sample_bytes > plan(LAYERS[:2], [1], ["a"]).layers[1].sample_bytes


@pytest.mark.parametrize(
    "wrong",
    [
        {"query_of": "nothing"},
        {"query_of": "joint@reference-1"},
        {"heads": 2},
        {"gen_grid": (4, 16)},
        {"role": "uncond"},
        {"dtype": "float32"},
    ],
)
def test_a_query_of_another_layer_has_to_fit(tmp_path, wrong):
    with pytest.raises(InputError, match="joint@text.*query_of.*a layer before it"):
        create_run(tmp_path / "r.zarr", [OWNER, OTHER, replace(WORDS, **wrong)], STEPS, ["a"])
    with pytest.raises(InputError, match="query_of"):
        create_run(tmp_path / "r.zarr", [OTHER, OWNER], STEPS, ["a"])
    assert not (tmp_path / "r.zarr").exists()


def test_a_second_query_is_refused(tmp_path):
    given = arrays(1, OTHER, 0) | {"query": draw((4, 64, 32), 0, 0)}
    with (
        pytest.raises(InputError, match="it is that of layer 'joint'"),
        create_run(tmp_path / "r.zarr", LAYERS, STEPS, ["a"]) as writer,
        writer.sample("a") as sink,
    ):
        sink.put(OTHER.name, 0, **given)
    with pytest.raises(InputError, match="query_of"):
        resume_run(tmp_path / "r.zarr", [OWNER, replace(OTHER, query_of=""), WORDS])


def test_a_root_that_shares_what_is_not_there_is_damaged(made):
    forge_root(Path(made.path), lambda root: root["layers"][1].update(query_of="joint@text"))
    with pytest.raises(DamagedRun, match="query_of"):
        open_run(made.path)
