"""The official protocol, loop by loop, as the paper's code does it; shares no code with the analysis."""

from __future__ import annotations

import numpy as np

from tests.analysis import oracle


def r2g_layer(scores, grid, size, steps):
    """Maps (head, y, x): softmax over patches, sum over steps, resize and clamp of each token, mean."""
    _, heads, gen, ref = scores.shape
    found = np.zeros((heads, *size))
    for n in range(heads):
        for r in range(ref):
            total = np.zeros(gen)
            for t in steps:
                total += oracle.softmax([scores[t, n, g, r] for g in range(gen)])
            grown = oracle.resize(total.reshape(grid), *size)
            for y in range(size[0]):
                for x in range(size[1]):
                    found[n, y, x] += max(grown[y, x], 0.0) / ref
    return found


def g2r_layer(scores, prefix, grid, steps, queries):
    """Maps (head, y, x): softmax over all tokens, sum over steps, mean over the queries; placed tokens."""
    _, heads, _, ref = scores.shape
    found = np.zeros((heads, ref))
    for n in range(heads):
        for g in queries:
            for t in steps:
                found[n] += np.array(oracle.softmax([scores[t, n, g, r] for r in range(ref)])) / len(queries)
    return found[:, prefix:].reshape(heads, *grid)


def min_max(image):
    """Bring an image to [0, 1]."""
    low, high = min(image.ravel()), max(image.ravel())
    return np.array([[(value - low) / (high - low + 1e-8) for value in row] for row in image])


def imacs(image, mask, direction, penalty):
    """The official score of a raw map."""
    if direction == "g2r":
        image = image * oracle.resize(mask.astype(float), *image.shape)
    shown = min_max(oracle.resize(min_max(image), *mask.shape))
    inside = outside = 0.0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            value = shown[y, x]
            if direction == "g2r":
                value = 0.0 if value <= 0.4 else value
            else:
                value = 0.0 if value >= 0.6 else 1 - value
            if mask[y, x]:
                inside += value
            else:
                outside += value
    extra = 1e-8 if direction == "g2r" else 0.0
    return inside / (mask.sum() + extra) - penalty * outside / ((~mask).sum() + extra)
