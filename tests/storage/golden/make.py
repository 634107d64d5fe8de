"""Write the golden stores of format 1: ``python -m tests.storage.golden.make FOLDER``.

The stores beside this file were written once, the first when format 1 was laid down, and never again: every
later version must read them. Their numbers follow from `expected` alone, which must not change either.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import i2am
from i2am.storage.format.layer_spec import LayerSpec

STORE = Path(__file__).parent / "format1.zarr"
NORMS = STORE.with_name("format1-norms.zarr")
"""Written when layers could have norms of values and contributions, and never again either."""
SHARED = STORE.with_name("format1-shared.zarr")
"""Written when a layer could share another's query and say what its keys are of, and never again either."""
SAMPLES = ("plain", "../é")
TIMESTEPS = (981, 500.5, 1)
LAYERS = (
    LayerSpec(
        "unet.down.0.attn2", 2, 4, (2, 3), (2, 2), 1, representation="factors", module_class="Attention"
    ),
    LayerSpec(
        "unet.mid.attn2",
        2,
        4,
        (1, 2),
        (1, 3),
        representation="factors",
        dtype="bfloat16",
        static_key=False,
        lse=True,
        scale=0.25,
        role="uncond",
    ),
    LayerSpec("unet.up.0.attn2", 1, 3, (2, 2), (0, 0), 1, representation="scores", dtype="float32"),
    LayerSpec("unet.up.1.attn2", 2, 8, (2, 1), (1, 2), representation="scores", dtype="float16"),
)
KINDS = ("query", "key", "scores", "lse", "value_norm", "contribution")
IMAGE = (2, 3, 3)


def expected(layer: int, kind: str, sample: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Multiples of 1/8 between -4 and 4, which every dtype holds exactly."""
    seed = layer + 10 * KINDS.index(kind) + 100 * sample + 1000 * step
    return (
        (((np.arange(np.prod(shape)) * 7919 + seed * 104729) % 65 - 32) / 8).reshape(shape).astype(np.float32)
    )


def expected_image(sample: int) -> np.ndarray:
    """Pixels."""
    return ((np.arange(np.prod(IMAGE)) * 31 + 7 * sample) % 256).reshape(IMAGE).astype(np.uint8)


def with_norms() -> tuple[LayerSpec, ...]:
    """The same layers with norms; the last without contributions."""
    return tuple(replace(spec, value_norm=True, contribution=spec is not LAYERS[-1]) for spec in LAYERS)


def with_shared_queries() -> tuple[LayerSpec, ...]:
    """The same layers, and two more that have the query of the first, or of the second."""
    first, second = LAYERS[:2]
    words = replace(
        second, name=f"{second.name}@text", ref_grid=(0, 0), ref_prefix=5, reference="text",
        query_of=second.name,
    )  # fmt: skip
    further = replace(
        first, name=f"{first.name}@reference-1", ref_grid=(1, 2), reference="reference-1", query_of=first.name
    )
    return (*LAYERS, words, further)


def main(folder: str, store: Path = STORE, layers: tuple[LayerSpec, ...] = LAYERS) -> None:
    attrs = {"model": "golden", "seeds": [1, 2]}
    path = Path(folder) / store.name
    with i2am.create_run(
        path, layers, TIMESTEPS, SAMPLES, attrs, {"generated": IMAGE}, shard_bytes=100
    ) as writer:
        for s, sample in enumerate(SAMPLES):
            with writer.sample(sample) as sink:
                for step in range(len(TIMESTEPS)):
                    for i, spec in enumerate(layers):
                        arrays = {}
                        if spec.representation == "factors":
                            at = 0 if spec.static_key else step
                            if not spec.query_of:
                                arrays["query"] = expected(
                                    i, "query", s, step, (spec.heads, spec.gen, spec.head_dim)
                                )
                            arrays["key"] = expected(i, "key", s, at, (spec.heads, spec.ref, spec.head_dim))
                        else:
                            arrays["scores"] = expected(
                                i, "scores", s, step, (spec.heads, spec.gen, spec.ref)
                            )
                        if spec.lse:
                            arrays["lse"] = expected(i, "lse", s, step, (spec.heads, spec.gen))
                        if spec.value_norm and not (spec.static_key and step):
                            arrays["value_norm"] = expected(i, "value_norm", s, step, (spec.heads, spec.ref))
                        if spec.contribution:
                            arrays["contribution"] = expected(i, "contribution", s, step, (spec.gen,))
                        sink.put(spec.name, step, **arrays)
                sink.put_image("generated", expected_image(s))
                sink.annotate(seed=s)


if __name__ == "__main__":
    main(sys.argv[1])
    main(sys.argv[1], NORMS, with_norms())
    main(sys.argv[1], SHARED, with_shared_queries())
