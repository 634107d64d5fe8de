"""Every geometry that the systems have: tokens, class tokens, grids, steps, heads and dtypes.

The oracle is plain double precision over the whole array at once; it shares nothing with the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from i2am.analysis.grids.resize import linear
from i2am.analysis.maps.attribution import attribution_maps
from i2am.storage.errors import NoAnswer
from tests.analysis import builders


@dataclass(frozen=True)
class Case:
    gen: tuple[int, int]
    ref: tuple[int, int]
    prefix: int = 0
    heads: int = 2
    steps: int = 2
    dim: int = 4
    dtype: str = "float16"
    representation: str = "auto"
    static: bool = True
    strength: float = 1.5

    def __str__(self):
        tokens = self.ref[0] * self.ref[1] + self.prefix
        return f"{tokens}tokens-{self.steps}steps-{self.heads}heads-{self.dtype}-{self.representation}"


CASES = [
    Case((8, 6), (0, 0), prefix=1),  # one pooled token
    Case((8, 6), (1, 1)),
    Case((16, 12), (2, 2), dtype="float32", representation="scores"),
    Case((12, 8), (0, 0), prefix=4),  # four tokens without a place
    Case((8, 8), (12, 12), prefix=1, heads=5),
    Case((16, 16), (16, 16), prefix=1, heads=8, steps=3),
    Case((16, 16), (16, 16), prefix=1, dtype="bfloat16", representation="scores"),
    Case((32, 24), (64, 64), heads=1, dim=8),
    Case((64, 64), (64, 64), heads=1, steps=1, dim=8, dtype="float32"),
    Case((48, 40), (3, 5), dtype="bfloat16", static=False),
    Case((6, 4), (6, 4), steps=100),
    Case((6, 4), (4, 6), steps=1, heads=24),
    Case((6, 4), (4, 6), steps=7, heads=1, representation="scores", static=False),
    Case((9, 5), (7, 3), prefix=2, strength=30.0, dtype="float32"),  # peaked: most weights underflow
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def made(case, tmp_path_factory):
    """(run, densities r2g (step, head, gen), densities g2r (step, head, placed ref) or None)."""
    spec = builders.layer(
        heads=case.heads,
        head_dim=case.dim,
        gen=case.gen,
        ref=case.ref,
        ref_prefix=case.prefix,
        dtype=case.dtype,
        representation=case.representation,
        static_key=case.static,
    )
    rng = np.random.default_rng(5)
    data = builders.factors(spec, case.steps, rng, case.strength)
    path = tmp_path_factory.mktemp("geometry") / "run.zarr"
    run, _ = builders.build(path, [spec], case.steps, data=lambda spec, sample: data)
    query, key = (array.astype(np.float64) for array in data)
    scores = np.matmul(query, key.swapaxes(-1, -2)) * case.dim**-0.5
    if run.layers["a"].representation == "scores":  # what was stored is the question, not what was captured
        scores = run.scores("a").compute()[0].astype(np.float64)
    columns = np.exp(scores - scores.max(axis=-2, keepdims=True))
    columns /= columns.sum(axis=-2, keepdims=True)
    spatial = case.ref[0] * case.ref[1]
    tokens = slice(case.prefix, None) if spatial else slice(None)
    r2g = columns[..., tokens].mean(axis=-1) * scores.shape[2]
    if spatial == 0 or scores.shape[3] == 1:
        return run, r2g, None
    rows = np.exp(scores - scores.max(axis=-1, keepdims=True))
    rows /= rows.sum(axis=-1, keepdims=True)
    return run, r2g, rows.mean(axis=-2)[..., tokens] * scores.shape[3]


def close(found, exact, case):
    # float32 logits of size s carry an error of s * 6e-8, which the exponential turns into a relative one.
    loose = 2e-5 if case.strength < 2 else 2e-3
    np.testing.assert_allclose(found, exact, rtol=loose, atol=loose * 0.1 * float(np.abs(exact).max()))


def by_direction(made, case):
    run, r2g, g2r = made
    yield run, "r2g", r2g, case.gen
    if g2r is not None:
        yield run, "g2r", g2r, case.ref


def test_unified_head_and_layer_maps(made, case):
    for run, direction, exact, grid in by_direction(made, case):
        unified = attribution_maps(run, direction, store=False).values
        close(unified[0], exact.mean(axis=(0, 1)).reshape(grid), case)
        heads = attribution_maps(run, direction, "head", store=False).values
        close(heads[0], exact.mean(axis=0).reshape(-1, *grid), case)
        layers = attribution_maps(run, direction, "layer", store=False).values
        np.testing.assert_array_equal(layers[:, 0], unified)


def test_time_maps(made, case):
    groups = min(5, case.steps)
    for run, direction, exact, grid in by_direction(made, case):
        found = attribution_maps(run, direction, "time", time_groups=groups, store=False).values
        parts = np.array_split(np.arange(case.steps), groups)
        own = np.stack([exact[part].mean(axis=(0, 1)) for part in parts]).reshape(-1, *grid)
        close(found[0], own, case)


def test_maps_of_another_size(made, case):
    for run, direction, exact, grid in by_direction(made, case):
        found = attribution_maps(run, direction, size=(20, 30), store=False).values
        close(found[0], linear(exact.mean(axis=(0, 1)).reshape(grid), (20, 30)), case)


def test_densities_have_mean_one_over_all_that_the_softmax_runs_over(made, case):
    run, _, g2r = made
    found = attribution_maps(run, "r2g", store=False).values
    np.testing.assert_allclose(found.mean(), 1, rtol=1e-5)
    if g2r is None:
        with pytest.raises(NoAnswer):
            attribution_maps(run, "g2r")
    elif case.prefix == 0:
        np.testing.assert_allclose(attribution_maps(run, "g2r", store=False).values.mean(), 1, rtol=1e-5)
