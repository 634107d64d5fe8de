"""Features as users write them, right and wrong; uint8 images [image, y, x, 3] come in."""

from __future__ import annotations

import numpy as np

CALLS: list[int] = []
"""Images of each call."""


def colours(images):
    """Mean and spread of each colour, and their products: 9 numbers."""
    CALLS.append(len(images))
    values = images.astype(np.float64) / 255
    mean, spread = values.mean((1, 2)), values.std((1, 2))
    return np.concatenate([mean, spread, mean * spread], axis=1)


def random(images):
    return np.random.default_rng().normal(size=(len(images), 4))


def of_the_batch(images):
    values = images.reshape(len(images), -1)[:, :8].astype(float)
    return values - values.mean(axis=0)


def one_number(images):
    return images.reshape(len(images), -1).mean(axis=1)


def by_size(images):
    return images.reshape(len(images), -1)[:, : images.shape[1]].astype(float)


def not_finite(images):
    return np.where(images.reshape(len(images), -1)[:, :3] == 1, np.nan, 1.0)


def whole_numbers(images):
    return images.reshape(len(images), -1)[:, :3]


def failing(images):
    raise RuntimeError("no such layer")


NUMBER = 3
