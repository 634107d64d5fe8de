"""A literal, slow implementation of the paper's definitions, loop by loop; shares no code with it."""

from __future__ import annotations

import math

import numpy as np


def logits(query, key, scale):
    """S[t, n, g, r] = q . k * scale, one number at a time."""
    steps, heads, gen, _ = query.shape
    ref = key.shape[2]
    found = np.zeros((steps, heads, gen, ref))
    for t in range(steps):
        for n in range(heads):
            own = key[0 if key.shape[0] == 1 else t, n].astype(np.float64)
            for g in range(gen):
                for r in range(ref):
                    found[t, n, g, r] = float(np.dot(query[t, n, g].astype(np.float64), own[r])) * scale
    return found


def softmax(values):
    """Softmax of a list of numbers."""
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / math.fsum(powers) for power in powers]


def r2g(scores, prefix):
    """Density over generated patches, mean over the placed reference tokens (all, if none is placed)."""
    steps, heads, gen, ref = scores.shape
    tokens = range(prefix, ref) if ref > prefix else range(ref)
    found = np.zeros((steps, heads, gen))
    for t in range(steps):
        for n in range(heads):
            for r in tokens:
                column = softmax([scores[t, n, g, r] for g in range(gen)])
                for g in range(gen):
                    found[t, n, g] += gen * column[g] / len(tokens)
    return found


def g2r(scores, prefix):
    """Density over reference tokens, mean over all generated patches; placed tokens only."""
    steps, heads, gen, ref = scores.shape
    found = np.zeros((steps, heads, ref - prefix))
    for t in range(steps):
        for n in range(heads):
            for g in range(gen):
                row = softmax([scores[t, n, g, r] for r in range(ref)])
                for r in range(prefix, ref):
                    found[t, n, r - prefix] += ref * row[r] / gen
    return found


def cubic(x, a=-0.75):
    """Keys' kernel."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def axis_weights(source, target):
    """Weights [target][source] of one axis: linear where it grows, shares of cells where it shrinks."""
    weights = [[0.0] * source for _ in range(target)]
    for at in range(target):
        if target < source:
            low, high = at * source / target, (at + 1) * source / target
            for cell in range(source):
                weights[at][cell] = max(0.0, min(high, cell + 1) - max(low, cell)) / (high - low)
            continue
        place = min(max((at + 0.5) * source / target - 0.5, 0), source - 1)
        left = math.floor(place)
        weights[at][left] += 1 - (place - left)
        weights[at][min(left + 1, source - 1)] += place - left
    return weights


def linear(image, rows, columns):
    """Resize of one map within its range, pixel by pixel."""
    height, width = image.shape
    down, across = axis_weights(height, rows), axis_weights(width, columns)
    found = np.zeros((rows, columns))
    for y in range(rows):
        for x in range(columns):
            for i in range(height):
                for j in range(width):
                    found[y, x] += down[y][i] * across[x][j] * image[i, j]
    return found


def resize(image, rows, columns):
    """Bicubic resize of one map, pixel by pixel."""
    height, width = image.shape
    found = np.zeros((rows, columns))
    for y in range(rows):
        for x in range(columns):
            sy, sx = (y + 0.5) * height / rows - 0.5, (x + 0.5) * width / columns - 0.5
            for i in range(math.floor(sy) - 1, math.floor(sy) + 3):
                for j in range(math.floor(sx) - 1, math.floor(sx) + 3):
                    pixel = image[min(max(i, 0), height - 1), min(max(j, 0), width - 1)]
                    found[y, x] += cubic(sy - i) * cubic(sx - j) * pixel
    return found


def unified(marginals, grids, size, grow=linear):
    """Mean over layers of the resized mean over steps and heads."""
    total = np.zeros(size)
    for marginal, grid in zip(marginals, grids, strict=True):
        mean = np.zeros(grid[0] * grid[1])
        steps, heads, _ = marginal.shape
        for t in range(steps):
            for n in range(heads):
                mean += marginal[t, n] / (steps * heads)
        total += grow(mean.reshape(grid), *size) / len(grids)
    return total


def imacs(image, mask, penalty, grow=linear):
    """The paper's formula on a map brought to the mask's size and to [0, 1]."""
    grown = grow(image, *mask.shape)
    scaled = (grown - grown.min()) / (grown.max() - grown.min())
    inside = outside = 0.0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            if mask[y, x]:
                inside += scaled[y, x]
            else:
                outside += scaled[y, x]
    return inside / mask.sum() - penalty * outside / (~mask).sum()
