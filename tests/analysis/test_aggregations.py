"""Aggregations: how attention is cut must not matter; the shipped ones against literal loops."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import cloudpickle
import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.analysis.aggregations.aggregate import aggregate
from i2am.analysis.aggregations.registry import find, known
from i2am.analysis.aggregations.shipped.centre import CENTRE, CENTRE_VARIATION
from i2am.analysis.aggregations.shipped.entropy import ENTROPY
from i2am.analysis.aggregations.shipped.head_similarity import HEAD_SIMILARITY
from i2am.analysis.aggregations.shipped.top_mass import TOP_MASS, top_mass
from i2am.analysis.aggregations.shipped.variance import TIME_VARIANCE
from i2am.analysis.marginals.quantities import compute_marginals
from i2am.analysis.marginals.store import open_marginals
from i2am.analysis.reduction import reduce
from i2am.analysis.reduction.aggregation import Aggregation, ratio
from i2am.storage.errors import AggregationError, InputError, NoAnswer, UnknownName
from tests.analysis import builders, oracle

ROOT = Path(__file__).parents[2]
SHIPPED = (CENTRE, CENTRE_VARIATION, ENTROPY, HEAD_SIMILARITY, TIME_VARIANCE, TOP_MASS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    layers = [
        builders.layer("a", gen=(8, 6), ref=(3, 2), ref_prefix=1),
        builders.layer("b", heads=3, gen=(2, 2), ref=(2, 3), representation="scores"),
    ]
    path = tmp_path_factory.mktemp("aggregations") / "run.zarr"
    return builders.build(path, layers, steps=5, samples=("one", "two"), images=True)


@pytest.fixture(scope="module")
def run(made):
    return made[0]


def probabilities(made, layer, sample):
    """Softmax over the reference tokens, one number at a time, from what was put."""
    spec = made[0].layers[layer]
    query, key = made[1][sample, layer]
    scores = oracle.logits(query.astype(np.float64), key.astype(np.float64), spec.logit_scale)
    if spec.representation == "scores":
        scores = scores.astype(np.float16).astype(np.float64)
    return np.array([[[oracle.softmax(row) for row in head] for head in step] for step in scores])


def reduce_layer(run, spec, aggregation, marginals):
    steps = range(len(run.timesteps))
    reduction = reduce.Reduction(run, spec, "one", aggregation)
    states = [reduction.slab(slab, marginals=marginals) for slab in reduce.slabs(spec, steps)]
    return reduce.finalize_states(aggregation, states, spec)


@pytest.mark.parametrize("layer", ["a", "b"])
def test_entropy_and_top_mass_follow_their_definitions(made, layer):
    p = probabilities(made, layer, "two")
    steps, heads, gen, ref = p.shape
    entropy, mass = np.zeros((steps, heads)), np.zeros((steps, heads))
    for t in range(steps):
        for n in range(heads):
            for g in range(gen):
                entropy[t, n] -= sum(x * math.log(x) for x in p[t, n, g]) / math.log(ref) / gen
                mass[t, n] += sum(sorted(p[t, n, g])[-2:]) / gen
    found = aggregate(made[0], ENTROPY, layers=layer, samples="two")
    np.testing.assert_allclose(found.values[0, 0], entropy, rtol=1e-4)
    found = aggregate(made[0], top_mass(2), layers=layer, samples="two")
    np.testing.assert_allclose(found.values[0, 0], mass, rtol=1e-4)


def test_attention_centres_and_their_variation(made):
    run = made[0]
    spec = run.layers["a"]
    p = probabilities(made, "a", "one")[..., spec.ref_prefix :]
    steps, heads, gen, _ = p.shape
    centre = np.zeros((steps, heads, gen, 2))
    for t, n, g in np.ndindex(steps, heads, gen):
        weights = p[t, n, g] / p[t, n, g].sum()
        for r, weight in enumerate(weights):
            centre[t, n, g] += weight * np.array([(r // 2 + 0.5) / 3, (r % 2 + 0.5) / 2])
    found = aggregate(run, CENTRE, layers="a", samples="one")
    assert found.dims == ("sample", "layer", "coordinate", "y", "x")
    expected = centre.mean(axis=(0, 1)).T.reshape(2, 8, 6)
    np.testing.assert_allclose(found.values[0, 0], expected, rtol=1e-4)
    mask = run.image("mask", "one")[..., 0] > 127
    covered = mask.reshape(8, 3, 6, 3).mean(axis=(1, 3)) >= 0.5
    near = [
        (y * 6 + x, v * 6 + u)
        for y in range(8)
        for x in range(6)
        for v, u in ((y + 1, x), (y, x + 1))
        if v < 8 and u < 6 and covered[y, x] and covered[v, u]
    ]
    assert 0 < len(near) < 82
    variation = [
        [np.mean([math.dist(centre[t, n, i], centre[t, n, j]) for i, j in near]) for n in range(heads)]
        for t in range(steps)
    ]
    found = aggregate(run, CENTRE_VARIATION, layers="a", samples="one")
    np.testing.assert_allclose(found.values[0, 0], variation, rtol=1e-4)


def test_head_similarity_and_variance_over_time(run):
    spec = run.layers["b"]
    r2g = compute_marginals(run, spec, "one")["r2g"].astype(np.float64)
    found = aggregate(run, HEAD_SIMILARITY, samples="one").sel(layer="b").values[0]
    series = (r2g - r2g.mean(axis=-1, keepdims=True)).swapaxes(0, 1).reshape(3, -1)
    expected = series @ series.T / np.outer(*[np.linalg.norm(series, axis=1)] * 2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-12)
    variance = aggregate(run, TIME_VARIANCE, layers="b", samples="one").values[0, 0]
    np.testing.assert_allclose(variance, r2g.var(axis=0).mean(axis=0).reshape(2, 2), rtol=1e-6)


def test_layers_with_fewer_heads_are_filled_up(run):
    found = aggregate(run, ENTROPY)
    assert found.shape == (2, 2, 5, 3)
    assert np.isnan(found.sel(layer="a", head=2)).all()
    assert np.isfinite(found.sel(layer="a", head=[0, 1])).all()
    assert list(found["timestep"].values) == [900, 890, 880, 870, 860]
    assert found.attrs["units"]


@pytest.mark.parametrize("aggregation", SHIPPED, ids=lambda entry: entry.name)
def test_how_attention_is_cut_does_not_matter(run, aggregation, monkeypatch):
    lazy = aggregate(run, aggregation)
    whole = lazy.compute(scheduler="synchronous")
    np.testing.assert_array_equal(lazy.compute(scheduler="processes"), whole)
    for name in ("READ_BYTES", "SLAB_BYTES", "PIECE_BYTES"):
        monkeypatch.setattr(reduce, name, 1)
    cut = aggregate(run, aggregation)
    np.testing.assert_allclose(cut.compute(scheduler="threads"), whole, rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 200), st.sampled_from(SHIPPED))
def test_any_sizes_of_pieces_give_the_same(run, read, slab, piece, aggregation):
    spec = run.layers["a"]
    marginals = compute_marginals(run, spec, "one") if aggregation.over == "marginals" else None
    whole = reduce_layer(run, spec, aggregation, marginals)
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("READ_BYTES", read), ("SLAB_BYTES", slab), ("PIECE_BYTES", piece)):
            patch.setattr(reduce, name, size)
        cut = reduce_layer(run, spec, aggregation, marginals)
    np.testing.assert_allclose(cut, whole, rtol=1e-6, atol=1e-7)


def test_making_one_computes_nothing(run, monkeypatch):
    def forbidden(*args, **more):
        raise AssertionError("computed")

    monkeypatch.setattr(type(run), "read", forbidden)
    with dask.config.set(scheduler=forbidden):
        assert aggregate(run, ENTROPY).shape == (2, 2, 5, 3)


MINE = """
import numpy as np
from i2am import Aggregation

def chunk(attention):
    p = attention.probabilities("g2r")
    return -(p * np.log(p + 1e-12)).sum(-1).mean(-1)

my_entropy = Aggregation("my_entropy", chunk, units="nats")
not_one = chunk
"""


BESIDE = """
from i2am import Aggregation
import my_helpers

def chunk(attention):
    return my_helpers.double(attention)

doubled = Aggregation("doubled", chunk)
"""

AWAY = """
from i2am import Aggregation
import my_library

doubled = Aggregation("doubled", lambda attention: my_library.double(attention))
"""

LOAD = "import pickle, sys; print(pickle.load(sys.stdin.buffer).chunk(21))"


def on_a_worker(name, folder):
    """Run the chunk of an aggregation in a process that has this project, and none of the user's files."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", LOAD], input=pickle.dumps(find(name)), cwd=folder, env=env, capture_output=True
    )


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_module.py").write_text(textwrap.dedent(MINE))
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("my_module", "broken_module"):
        sys.modules.pop(name, None)


def test_a_file_of_ones_own_in_the_working_directory(run, mine):
    found = aggregate(run, "my_module:my_entropy", layers="a")
    normal = aggregate(run, "entropy", layers="a")
    np.testing.assert_allclose(found.values, normal.values * math.log(7), rtol=1e-5)
    # To a process that does not have the file, the functions travel by value.
    np.testing.assert_array_equal(found.compute(scheduler="processes"), found.values)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Files of a user: in the working directory, and in a library that is not installed; an empty folder."""
    for folder in ("here", "library", "empty"):
        (tmp_path / folder).mkdir()
    double = "def double(value): return 2 * value"
    (tmp_path / "here" / "my_helpers.py").write_text(double)
    (tmp_path / "here" / "beside_module.py").write_text(textwrap.dedent(BESIDE))
    (tmp_path / "here" / "away_module.py").write_text(textwrap.dedent(AWAY))
    (tmp_path / "library" / "my_library.py").write_text(double)
    monkeypatch.syspath_prepend(str(tmp_path / "library"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "empty"
    for name in ("my_helpers", "beside_module", "away_module", "my_library"):
        module = sys.modules.pop(name, None)
        if module is not None and name in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.unregister_pickle_by_value(module)


def test_files_beside_it_travel_to_workers_too(elsewhere):
    done = on_a_worker("beside_module:doubled", elsewhere)
    assert done.stdout.split() == [b"42"], done.stderr


def test_one_that_a_worker_cannot_load_fails_in_its_task_not_in_the_worker(elsewhere):
    """Dask unpickles outside of tasks: an error there ends one worker after the other."""
    done = on_a_worker("away_module:doubled", elsewhere)
    assert b"AggregationError: aggregation 'doubled' cannot be loaded by a worker" in done.stderr
    assert b"No module named 'my_library'" in done.stderr


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("entropie", UnknownName, "did you mean 'entropy'|one of"),
        ("my_module:entropy", UnknownName, "my_entropy"),
        ("my_module:not_one", InputError, "name the declaration"),
        ("no_such_module:x", UnknownName, "no_such_module"),
        ("broken_module:x", InputError, "ZeroDivisionError"),
    ],
)
def test_names_that_lead_nowhere(mine, name, error, words):
    with pytest.raises(error, match=words):
        find(name)


def test_every_shipped_one_is_found_by_its_name():
    found = [find(name) for name in known()]
    assert all(entry in found for entry in SHIPPED)


def test_a_declaration_that_cannot_work_is_refused_when_it_is_made():
    def nothing(attention):
        return 0

    for wrong, words in (
        ({"name": "../x"}, "name"),
        ({"over": "pixels"}, "over"),
        ({"keep": ("head", "step")}, "keep"),
        ({"dims": ("step", "colour")}, "dims"),
        ({"dims": ("gen", "ref")}, "one of gen and ref"),
        ({"finalize": 3}, "finalize"),
    ):
        with pytest.raises(InputError, match=words):
            Aggregation(**({"name": "x", "chunk": nothing} | wrong))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"chunk": lambda a: 1 / 0}, "chunk failed at layer 'a'.*ZeroDivisionError"),
        ({"chunk": lambda a: np.zeros(3)}, "begin with the axes"),
        (
            {"chunk": lambda a: a.scores.mean((2, 3)), "finalize": lambda state, layer: state.mean()},
            "its result",
        ),
        (
            {"chunk": lambda a: a.scores.mean((2, 3)), "finalize": lambda state, layer: state[:2]},
            "axis 'step'",
        ),
        ({"chunk": lambda a: a.scores, "over": "marginals"}, 'over="scores"'),
        ({"chunk": lambda a: a.probabilities("r2g").sum((2, 3)), "rows": True}, "rows=False"),
    ],
)
def test_one_that_does_not_do_what_it_declares(run, more, words, monkeypatch):
    monkeypatch.setattr(reduce, "PIECE_BYTES", 1)
    with pytest.raises(InputError, match=words):
        aggregate(run, Aggregation(**({"name": "mine"} | more)), layers="a").compute()


def test_pooled_tokens_have_no_centre(tmp_path):
    run, _ = builders.build(tmp_path / "run.zarr", [builders.layer("p", ref=(0, 0), ref_prefix=1)])
    with pytest.raises(NoAnswer):
        aggregate(run, CENTRE)
    assert (aggregate(run, ENTROPY).values == 0).all()


def test_aggregation_errors_are_input_errors_with_a_cause(run):
    with pytest.raises(AggregationError) as caught:
        aggregate(run, Aggregation("mine", lambda a: 1 / 0)).compute(scheduler="synchronous")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_mean_over_nothing_is_nan():
    assert np.isnan(ratio((np.zeros(1), np.zeros(1)), None))


def test_marginals_are_taken_from_the_derived_store(run, monkeypatch):
    cache = open_marginals(run)
    for layer in run.layers.values():
        for sample in run.samples:
            cache.load_or_compute(layer, sample)
    monkeypatch.setattr(type(run), "read", None)
    assert np.isfinite(aggregate(run, TIME_VARIANCE).values).all()
