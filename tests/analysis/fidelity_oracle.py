"""FID and KID as clean-fid 0.1.35 (MIT) and torch-fidelity 0.4.0 (Apache-2.0) compute them.

Neither installs without torchvision, which must fit the build of torch; so their formulas stand here, line by
line. Where the packages are there, a test compares these with them.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg


def clean_fid_frechet_distance(feats1, feats2):
    """`cleanfid.fid.fid_from_feats` with `frechet_distance`."""
    mu1, sigma1 = np.mean(feats1, axis=0), np.cov(feats1, rowvar=False)
    mu2, sigma2 = np.mean(feats2, axis=0), np.cov(feats2, rowvar=False)
    diff = mu1 - mu2
    covmean = linalg.sqrtm(sigma1.dot(sigma2))
    if not np.isfinite(covmean).all():
        offset = np.eye(sigma1.shape[0]) * 1e-6
        covmean = linalg.sqrtm((sigma1 + offset).dot(sigma2 + offset))
    if np.iscomplexobj(covmean):
        covmean = covmean.real
    return diff.dot(diff) + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(covmean)


def clean_fid_kernel_distance(feats1, feats2, choices):
    """`cleanfid.fid.kernel_distance` of subsets: rows of feats1 and of feats2 for each of `choices`."""
    n, t = feats1.shape[1], 0
    for own1, own2 in choices:
        x, y = feats2[own2], feats1[own1]
        m = len(x)
        a = (x @ x.T / n + 1) ** 3 + (y @ y.T / n + 1) ** 3
        b = (x @ y.T / n + 1) ** 3
        t += (a.sum() - np.diag(a).sum()) / (m - 1) - b.sum() * 2 / m
    return float(t / len(choices) / m)


def torch_fidelity_fid(features_1, features_2):
    """`torch_fidelity.metric_fid.fid_statistics_to_metric`."""
    mu1, sigma1 = np.mean(features_1, axis=0), np.cov(features_1, rowvar=False)
    mu2, sigma2 = np.mean(features_2, axis=0), np.cov(features_2, rowvar=False)
    diff = mu1 - mu2
    tr_covmean = np.sum(np.sqrt(np.linalg.eigvals(sigma1.dot(sigma2)).astype("complex128")).real)
    return float(diff.dot(diff) + np.trace(sigma1) + np.trace(sigma2) - 2 * tr_covmean)
