"""Distances of two sets of images by their features: FID and KID.

Sources: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NIPS 2017; Bińkowski et al.,
"Demystifying MMD GANs", ICLR 2018. Both are the published numbers for Inception features alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from i2am.storage.errors import InputError, ShapeMismatch

SUBSETS, SUBSET_SIZE = 100, 1000
"""Of KID, as clean-fid and torch-fidelity draw them."""

Float64 = NDArray[np.float64]


def fid(generated: ArrayLike, real: ArrayLike) -> float:
    """Fréchet distance of the Gaussians that fit two sets (image, feature); 0 for equal sets.

    The trace of the root of the covariances' product is the sum of the singular values of the product of
    their own roots, so nothing is squared and images may be fewer than features.
    """
    a, b = _checked(generated, real)
    apart = a.mean(0) - b.mean(0)
    one, other = _root(a), _root(b)
    common = np.linalg.svd(one @ other.T, compute_uv=False).sum()
    return float(apart @ apart + (one**2).sum() + (other**2).sum() - 2 * common)


def _root(s: Float64) -> Float64:
    """A matrix whose transpose times itself is the covariance of (image, feature)."""
    centred: Float64 = (s - s.mean(0)) / np.sqrt(len(s) - 1)
    return centred if len(s) <= s.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))


def kid(
    generated: ArrayLike, real: ArrayLike, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> float:
    """Squared MMD of two sets (image, feature) by the kernel (x·y / features + 1)³, unbiased: may be below 0.

    The mean over `subsets` of `size` images each, drawn without replacement; sets that are no larger than
    that are compared whole, once.
    """
    a, b = _checked(generated, real)
    if len(a) == len(b) <= size:
        return _mmd(a, b)
    draw, many = np.random.default_rng(seed), min(size, len(a), len(b))
    found = []
    for _ in range(subsets):
        one, other = (s[draw.choice(len(s), many, replace=False)] for s in (a, b))
        found.append(_mmd(one, other))
    return float(np.mean(found))


def _mmd(a: Float64, b: Float64) -> float:
    """Unbiased squared MMD of as many images each."""
    count = len(a)
    within = sum(float(_kernel(s, s).sum() - (_kernel_of_itself(s)).sum()) for s in (a, b))
    return within / (count * (count - 1)) - 2 * float(_kernel(a, b).mean())


def _kernel(a: Float64, b: Float64) -> Float64:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def _kernel_of_itself(s: Float64) -> Float64:
    return np.asarray(((s**2).sum(1) / s.shape[1] + 1) ** 3)


def _checked(generated: ArrayLike, real: ArrayLike) -> tuple[Float64, Float64]:
    a, b = (np.asarray(s, dtype=np.float64) for s in (generated, real))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1:] != b.shape[1:]:
        raise ShapeMismatch(
            "features of another model",
            expected="(image, feature) with as many features in both sets",
            got=f"{a.shape} and {b.shape}",
            remedy="take both with one model",
        )
    if min(len(a), len(b)) < 2:
        raise InputError(
            "a distance of sets",
            expected="at least 2 images in each",
            got=f"{len(a)} and {len(b)}",
            remedy="give more images",
        )
    return a, b
