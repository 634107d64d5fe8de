"""Geometries of the systems that the benchmarks speak of, with random factors in place of a model's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.open import open_run
from i2am.storage.reading.run import Run
from i2am.storage.writing.create import create_run

Layer = tuple[tuple[int, int], tuple[int, int], int, int, int]
"""Generated grid, reference grid, tokens without a place, heads, head dimension."""

SYSTEMS: dict[str, list[Layer]] = {
    "StableVITON warp blocks, N x N": [
        ((64, 48), (64, 48), 0, 8, 40),
        ((32, 24), (32, 24), 0, 8, 80),
        ((16, 12), (16, 12), 0, 8, 160),
    ],
    "PASD at 512 px, N x N": [
        ((64, 64), (64, 64), 0, 8, 40),
        ((32, 32), (32, 32), 0, 8, 80),
        ((16, 16), (16, 16), 0, 8, 160),
        ((8, 8), (8, 8), 0, 8, 160),
    ],
    "IP-Adapter SD1.5, 257 tokens": [
        ((64, 64), (16, 16), 1, 8, 40),
        ((32, 32), (16, 16), 1, 8, 80),
        ((16, 16), (16, 16), 1, 8, 160),
        ((8, 8), (16, 16), 1, 8, 160),
    ],
    "SeeSR, 145 tokens": [
        ((64, 64), (12, 12), 1, 5, 64),
        ((32, 32), (12, 12), 1, 10, 64),
        ((16, 16), (12, 12), 1, 20, 64),
        ((8, 8), (12, 12), 1, 20, 64),
    ],
    "Paint-by-Example, one pooled token": [
        ((64, 64), (0, 0), 1, 8, 40),
        ((32, 32), (0, 0), 1, 8, 80),
        ((16, 16), (0, 0), 1, 8, 160),
        ((8, 8), (0, 0), 1, 8, 160),
    ],
}

SMALL: dict[str, list[Layer]] = {
    "small, of many samples": [((16, 16), (6, 6), 1, 2, 8), ((8, 8), (6, 6), 1, 2, 8)],
}
"""No system, but a run of it has room for thousands of samples."""


def specs(system: str, copies: int = 1) -> list[LayerSpec]:
    """The layers of a system, each kind `copies` times, float16 factors and one key for all steps."""
    return [
        LayerSpec(f"layer{number}.{copy}", heads, dim, gen, ref, ref_prefix=prefix, representation="factors")
        for number, (gen, ref, prefix, heads, dim) in enumerate((SYSTEMS | SMALL)[system])
        for copy in range(copies)
    ]


def factors(spec: LayerSpec, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Query (step, head, gen, dim) and key (1, head, ref, dim), float16, spread like a trained model's."""
    rng = np.random.default_rng(seed)
    query = rng.standard_normal((steps, spec.heads, spec.gen, spec.head_dim), np.float32)
    key = rng.standard_normal((1, spec.heads, spec.ref, spec.head_dim), np.float32)
    return query.astype(np.float16), key.astype(np.float16)


def write_run(path: Path, layers: Sequence[LayerSpec], steps: int, samples: int) -> Run:
    """Write a run of random factors, with masks; every sample has the same ones, to be written fast."""
    names = [f"sample-{number:04d}" for number in range(samples)]
    shapes = dict.fromkeys(("mask", "reference_mask"), (64, 48, 1))
    shapes |= dict.fromkeys(("source", "reference", "generated"), (64, 48, 3))
    data = {spec.name: factors(spec, steps, number) for number, spec in enumerate(layers)}
    mask = np.zeros((64, 48, 1), np.uint8)
    mask[16:48, 12:36] = 255
    with create_run(path, layers, list(range(steps, 0, -1)), names, image_shapes=shapes) as run:
        for name in names:
            with run.sample(name) as sink:
                for image, shape in shapes.items():
                    sink.put_image(image, np.broadcast_to(mask, shape))
                for spec in layers:
                    query, key = data[spec.name]
                    for step in range(steps):
                        sink.put(spec.name, step, query=query[step], key=key[0])
    return open_run(path)
