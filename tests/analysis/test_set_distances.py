"""FID and KID against other libraries on the same features."""

from __future__ import annotations

import numpy as np
import pytest

from i2am.analysis.experiments.set_distances import fid, kid
from i2am.storage.errors import InputError, ShapeMismatch
from tests.analysis import fidelity_oracle as oracle

pytestmark = pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all")


def features(rng, count, size, shift=0.0):
    """Sparse, correlated and not below 0, as pooled Inception features are."""
    mix = np.random.default_rng(1).normal(size=(size, size)) / np.sqrt(size)
    return np.maximum(rng.normal(size=(count, size)) @ mix + 0.3 + shift, 0).astype(np.float32)


def torchmetrics_values(made, real):
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Given(torch.nn.Module):
        num_features = made.shape[1]

        def forward(self, values):
            return values

    size = min(len(made), len(real))
    metrics = (
        FrechetInceptionDistance(Given()).set_dtype(torch.float64),
        KernelInceptionDistance(Given(), subsets=1, subset_size=size),
    )
    for metric in metrics:
        metric.update(torch.from_numpy(real).double(), real=True)
        metric.update(torch.from_numpy(made).double(), real=False)
    return float(metrics[0].compute()), float(metrics[1].compute()[0])


@pytest.mark.parametrize(("made_count", "real_count", "size"), [(300, 400, 48), (200, 200, 96), (40, 40, 64)])
def test_fid_equals_other_libraries(made_count, real_count, size):
    rng = np.random.default_rng(0)
    made, real = features(rng, made_count, size, 0.1), features(rng, real_count, size)
    a, b = made.astype(np.float64), real.astype(np.float64)
    ours = fid(made, real)
    assert ours > 0.05
    assert ours == pytest.approx(oracle.clean_fid_frechet_distance(a, b), abs=1e-4)
    assert ours == pytest.approx(oracle.torch_fidelity_fid(a, b), abs=1e-4)
    assert ours == pytest.approx(torchmetrics_values(made, real)[0], abs=1e-4)


def test_fid_of_fewer_images_than_features_is_exact():
    """Where the covariances are singular: two points on a line in many dimensions, by hand."""
    made, real = np.zeros((2, 500)), np.zeros((2, 500))
    made[1, 3], real[:, 3] = 2.0, (5.0, 9.0)
    assert fid(made, real) == pytest.approx((7 - 1) ** 2 + (np.sqrt(8) - np.sqrt(2)) ** 2, abs=1e-12)
    assert fid(real, real) == pytest.approx(0, abs=1e-9)


def test_kid_equals_other_libraries():
    rng = np.random.default_rng(3)
    made, real = features(rng, 120, 40, 0.1), features(rng, 120, 40)
    every = [(np.arange(120), np.arange(120))]
    ours = kid(made, real)
    assert ours == pytest.approx(oracle.clean_fid_kernel_distance(*_double(made, real), every), abs=1e-9)
    assert ours == pytest.approx(torchmetrics_values(made, real)[1], abs=1e-4)


def test_kid_of_subsets_equals_other_libraries_on_the_same_draws():
    rng = np.random.default_rng(4)
    made, real = features(rng, 90, 32, 0.2), features(rng, 150, 32)
    draw = np.random.default_rng(7)
    choices = [(draw.choice(90, 50, replace=False), draw.choice(150, 50, replace=False)) for _ in range(20)]
    want = oracle.clean_fid_kernel_distance(*_double(made, real), choices)
    assert kid(made, real, subsets=20, size=50, seed=7) == pytest.approx(want, abs=1e-9)
    # Sets of different sizes are compared by as many images each, again and again.
    assert kid(made, real) == pytest.approx(want, abs=0.02)


def test_kid_of_one_distribution_is_about_zero_whatever_the_count():
    rng = np.random.default_rng(5)
    found = [kid(features(rng, 20, 64), features(rng, 20, 64)) for _ in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(200)


def test_features_of_another_model_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ShapeMismatch, match="features of another model.*got .5, 8. and .5, 9."):
        fid(rng.normal(size=(5, 8)), rng.normal(size=(5, 9)))
    with pytest.raises(InputError, match="at least 2 images in each; got 1 and 5"):
        kid(rng.normal(size=(1, 8)), rng.normal(size=(5, 8)))


def test_the_formulas_are_those_of_the_packages():
    fid_module = pytest.importorskip("cleanfid.fid", reason="clean-fid needs a torchvision that fits torch")
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    rng = np.random.default_rng(0)
    a, b = _double(features(rng, 60, 16, 0.1), features(rng, 60, 16))
    assert oracle.clean_fid_kernel_distance(a, b, [(np.arange(60),) * 2]) == pytest.approx(
        fid_module.kernel_distance(a, b, num_subsets=1, max_subset_size=60), abs=1e-9
    )
    stats = [{"mu": s.mean(0), "sigma": np.cov(s, rowvar=False)} for s in (a, b)]
    theirs = metric_fid.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert oracle.torch_fidelity_fid(a, b) == pytest.approx(theirs, abs=1e-9)


def _double(*sets):
    return tuple(s.astype(np.float64) for s in sets)
