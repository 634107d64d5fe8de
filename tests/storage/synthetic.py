"""Small runs with known content, and the values that must come out, computed without the store's own code."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import i2am
from i2am.storage.format.layer_spec import LayerSpec

LAYERS = (
    LayerSpec("down.0.attn2", 4, 8, (4, 6), (3, 4), 1, representation="factors"),
    LayerSpec(
        "mid.attn2",
        2,
        4,
        (2, 3),
        (2, 2),
        representation="factors",
        dtype="bfloat16",
        static_key=False,
        lse=True,
    ),
    LayerSpec("up.0.attn2", 3, 16, (3, 2), (0, 0), 1, representation="scores", dtype="float32"),
)
TIMESTEPS = (981, 741.5, 501, 261, 21)
SAMPLES = ("a", "b", "c")
IMAGES = {"generated": (6, 8, 3), "mask": (6, 8, 1)}


def rng(*words: object) -> np.random.Generator:
    """A generator that depends on nothing but the words."""
    return np.random.default_rng(zlib.crc32(repr(words).encode()))


def round_to(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values that the dtype holds exactly, as float16 or float32."""
    if dtype == "float16":
        return values.astype(np.float16)
    values = values.astype(np.float32)
    if dtype == "bfloat16":
        return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return values


def factors(spec: LayerSpec, sample: str, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Query and key of one step."""
    at = 0 if spec.static_key else step
    query = rng("query", spec.name, sample, step).standard_normal((spec.heads, spec.gen, spec.head_dim))
    key = rng("key", spec.name, sample, at).standard_normal((spec.heads, spec.ref, spec.head_dim))
    return round_to(query, spec.dtype), round_to(key, spec.dtype)


def logits(spec: LayerSpec, sample: str, step: int) -> np.ndarray:
    """The scaled logits in double precision, term by term."""
    query, key = (a.astype(np.float64) for a in factors(spec, sample, step))
    scale = spec.head_dim**-0.5 if spec.scale is None else spec.scale
    return np.einsum("hgd,hrd->hgr", query, key) * scale


def lse(spec: LayerSpec, sample: str, step: int) -> np.ndarray:
    """Log-sum-exp rows of one step."""
    return rng("lse", spec.name, sample, step).standard_normal((spec.heads, spec.gen)).astype(np.float32)


def image(name: str, sample: str, shape: Sequence[int]) -> np.ndarray:
    """One image."""
    return rng("image", name, sample).integers(0, 256, tuple(shape), dtype=np.uint8)


def fill(
    sink: i2am.Sink,
    layers: Iterable[LayerSpec],
    steps: Iterable[int],
    images: dict[str, tuple[int, int, int]] | None = None,
) -> None:
    """Put everything a sample needs."""
    for step in steps:
        for spec in layers:
            query, key = factors(spec, sink.sample, step)
            rows = lse(spec, sink.sample, step) if spec.lse else None
            sink.put(spec.name, step, query=query, key=key, lse=rows)
    for name, shape in (images or {}).items():
        sink.put_image(name, image(name, sink.sample, shape))


def write_run(
    path: Path | str,
    samples: Sequence[str] = SAMPLES,
    layers: Sequence[LayerSpec] = LAYERS,
    timesteps: Sequence[float] = TIMESTEPS,
    images: dict[str, tuple[int, int, int]] | None = IMAGES,
    **options: object,
) -> i2am.Run:
    """Write a whole run and open it."""
    with i2am.create_run(path, layers, timesteps, samples, image_shapes=images, **options) as writer:
        for sample in writer.samples:
            with writer.sample(sample) as sink:
                fill(sink, layers, range(len(timesteps)), images)
    return i2am.open_run(path)


def check_values(run: i2am.Run, layers: Iterable[LayerSpec] = LAYERS) -> None:
    """Compare every number of a run with what was put into it."""
    for spec in layers:
        got = run.scores(spec.name).compute()
        for i, sample in enumerate(run.samples):
            for step in range(len(run.timesteps)):
                want = logits(spec, sample, step)
                bound = (
                    2e-3 * np.abs(want).max() if half_scores(run, spec) else 1e-5 * max(1, np.abs(want).max())
                )
                assert np.abs(got[i, step] - want).max() <= bound
            if run.layers[spec.name].representation == "factors":
                block = run.read(spec.name, sample)
                for step in range(len(run.timesteps)):
                    query, key = factors(spec, sample, step)
                    assert np.array_equal(block.query[step], query)
                    assert np.array_equal(block.key[0 if spec.static_key else step], key)


def half_scores(run: i2am.Run, spec: LayerSpec) -> bool:
    """Whether a layer's scores were rounded to float16."""
    return run.layers[spec.name].representation == "scores" and spec.dtype == "float16"
