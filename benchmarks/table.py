"""Bytes of one sample for each system's real geometry: predicted by the plan, as factors and as full scores.

`python -m benchmarks.table` prints the README's table; `--write SYSTEM` writes one sample of random factors
and compares its size on disk with the prediction, `--layers N` of the first N layers alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from i2am.analysis.grids.selection import has_reference_map, is_similarity
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.writing.create import create_run
from i2am.storage.writing.plan import plan

Grid = tuple[int, int]


@dataclass(frozen=True)
class Group:
    """Equal layers: how many, grids, tokens without a place, heads, head dimension."""

    count: int
    gen: Grid
    ref: Grid
    prefix: int
    heads: int
    dim: int
    static: bool = True
    lse: bool = False
    dtype: str = "float16"
    references: int = 1  # each is a layer of its own in the store


def _unet(heads: tuple[int, ...], dims: tuple[int, ...], base: Grid, ref: Grid, prefix: int) -> list[Group]:
    """Sixteen cross-attentions of Stable Diffusion: 5, 5, 5 and 1 at each resolution."""
    return [
        Group(count, (base[0] >> level, base[1] >> level), ref, prefix, heads[level], dims[level])
        for level, count in enumerate((5, 5, 5, 1))
    ]


def _joined(
    counts: tuple[int, ...], heads: tuple[int, ...], dims: tuple[int, ...], base: Grid
) -> list[Group]:
    """Self-attention, at each resolution, that a reference of the picture's own size has joined."""
    grids = [(base[0] >> level, base[1] >> level) for level in range(len(counts))]
    sizes = zip(counts, grids, heads, dims, strict=True)
    return [Group(count, grid, grid, 0, own, dim, False, True) for count, grid, own, dim in sizes if count]


SD = ((8, 8, 8, 8), (40, 80, 160, 160))
SYSTEMS: dict[str, tuple[int, list[Group]]] = {
    "Paint-by-Example, 512²": (50, _unet(*SD, (64, 64), (0, 0), 1)),
    "DCI-VTON, 512²": (100, _unet(*SD, (64, 64), (0, 0), 1)),
    "StableVITON, warping blocks, 512×384": (
        50,
        [
            # Each block has the width of the features that come from below: 160, 80 and 40 a head.
            Group(3, (16, 12), (16, 12), 0, 8, 160, False),
            Group(1, (32, 24), (32, 24), 0, 8, 160, False),
            Group(2, (32, 24), (32, 24), 0, 8, 80, False),
            Group(1, (64, 48), (64, 48), 0, 8, 80, False),
            Group(2, (64, 48), (64, 48), 0, 8, 40, False),
        ],
    ),
    "PASD, 768²": (
        20,
        [
            Group(3, (size, size), (size, size), 0, 8, dim, False)
            for size, dim in ((12, 160), (24, 160), (48, 80), (96, 40))
        ],
    ),
    "SeeSR, UNet and ControlNet, 512²": (
        50,
        [
            *_unet((5, 10, 20, 20), (64,) * 4, (64, 64), (12, 12), 1),
            *(Group(2, (64 >> n, 64 >> n), (12, 12), 1, heads, 64) for n, heads in enumerate((5, 10, 20))),
            Group(1, (8, 8), (12, 12), 1, 20, 64),
        ],
    ),
    "AnyDoor, UNet and ControlNet, 512²": (
        50,
        [
            *_unet((5, 10, 20, 20), (64,) * 4, (64, 64), (16, 16), 1),
            *(Group(2, (64 >> n, 64 >> n), (16, 16), 1, heads, 64) for n, heads in enumerate((5, 10, 20))),
            Group(1, (8, 8), (16, 16), 1, 20, 64),
        ],
    ),
    "SUPIR, 1024²": (
        50,
        [Group(1, (32, 32), (32, 32), 0, 20, 64, False), Group(1, (64, 64), (64, 64), 0, 10, 64, False)],
    ),
    "IP-Adapter full, Stable Diffusion 1.5, 512²": (50, _unet(*SD, (64, 64), (16, 16), 1)),
    "IP-Adapter, FLUX.1, 1024²": (28, [Group(19, (64, 64), (0, 0), 4, 24, 128, True, True, "bfloat16")]),
    "IP-Adapter, Stable Diffusion 3.5 large, 1024²": (
        28,
        [Group(38, (64, 64), (0, 0), 64, 38, 64, False, True, "bfloat16")],
    ),
    "CatVTON, 1024×768": (50, _joined((5, 5, 5, 1), *SD, (128, 96))),
    "IDM-VTON, 1024×768": (30, _joined((0, 10, 60), (5, 10, 20), (64, 64, 64), (128, 96))),
    "FLUX Fill with ICEdit, 512²": (28, [Group(57, (32, 32), (32, 32), 0, 24, 128, False, True, "bfloat16")]),
    "FLUX.1 Kontext, 1024²": (28, [Group(57, (64, 64), (64, 64), 0, 24, 128, False, True, "bfloat16")]),
    "FLUX.2 dev, one reference, 1024²": (
        50,
        [Group(56, (64, 64), (64, 64), 0, 48, 128, False, True, "bfloat16")],
    ),
    "FLUX.2 dev, three references, 1024²": (
        50,
        [Group(56, (64, 64), (64, 64), 0, 48, 128, False, True, "bfloat16", 3)],
    ),
    "FLUX.2 klein 9B KV, three references, 1024²": (
        4,
        [Group(32, (64, 64), (64, 64), 0, 32, 128, True, True, "bfloat16", 3)],
    ),
    "Qwen-Image-Edit, 1024²": (50, [Group(60, (64, 64), (64, 64), 0, 24, 128, False, True, "bfloat16")]),
    "Qwen-Image-2.1, three references, 1024²": (
        40,
        [Group(32, (64, 64), (64, 64), 0, 32, 128, True, True, "bfloat16", 3)],
    ),
}
"""Steps and layers: the conditional rows of one sample."""

ADAPTERS = (
    "diffusers-unet ldm", "ldm", "stableviton", "pasd", "seesr", "anydoor", "supir", "ip-adapter",
    "flux-ip-adapter", "sd3-ip-adapter", "catvton", "idm-vton", "flux-canvas", "flux-kontext",
    "flux2", "flux2", "flux2", "qwen-image-edit", "qwen-image-2.1",
)  # fmt: skip
"""Of each system, in their order."""


def specs(groups: list[Group], layers: int | None = None) -> list[LayerSpec]:
    """Layers of the store: those of the model, or its first ``layers``, once for each reference."""
    names = [
        (group, f"layer{number}.{copy}") for number, group in enumerate(groups) for copy in range(group.count)
    ]
    return [
        LayerSpec(
            f"{name}@reference-{number}" if number else name,
            group.heads, group.dim, group.gen, group.ref, group.prefix,
            static_key=group.static, lse=group.lse, dtype=group.dtype,  # type: ignore[arg-type]
            value_norm=True, contribution=True, query_of=name if number else "",
            reference=f"reference-{number}" if number else "reference",
        )
        for group, name in names[:layers]
        for number in range(group.references)
    ]  # fmt: skip


def write(steps: int, layers: list[LayerSpec]) -> tuple[int, int]:
    """Predicted and measured bytes of a run of one sample of random factors."""
    times = list(range(steps, 0, -1))
    predicted = plan(layers, times, ["a"], {}).total_bytes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.zarr"
        with create_run(path, layers, times, ["a"]) as run, run.sample("a") as sink:
            for spec in layers:
                for step, arrays in enumerate(_random(spec, steps)):
                    sink.put(spec.name, step, **arrays)
        return predicted, sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _random(spec: LayerSpec, steps: int) -> Iterator[dict[str, np.ndarray]]:
    """What a layer is given at each step."""
    rng = np.random.default_rng(0)
    query, key = (
        _rounded(rng.standard_normal((spec.heads, tokens, spec.head_dim), np.float32), spec.dtype)
        for tokens in (spec.gen, spec.ref)
    )
    norms = np.ones((spec.heads, spec.ref), np.float32)
    for step in range(steps):
        arrays = {"key": key, "contribution": np.full(spec.gen, norms.mean())}
        if not spec.query_of:
            arrays["query"] = np.roll(query, step, 1)
        if step == 0 or not spec.static_key:
            arrays["value_norm"] = norms
        if spec.lse:
            arrays["lse"] = rng.standard_normal((spec.heads, spec.gen), np.float32)
        yield arrays


def _rounded(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Float16; bfloat16 as float32 whose last 16 bits are zero."""
    if dtype != "bfloat16":
        return numbers.astype(dtype)
    return (numbers.view(np.uint32) & 0xFFFF0000).view(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", choices=list(SYSTEMS))
    parser.add_argument("--layers", type=int, help="of the model, to write; all of them where it is left out")
    args = parser.parse_args()
    if args.write:
        steps, groups = SYSTEMS[args.write]
        predicted, measured = write(steps, specs(groups, args.layers))
        print(f"{args.write}: predicted {predicted:,}, measured {measured:,}: {measured / predicted:.4f}")
        return
    print(table())


def table() -> str:
    """The README's table; a test compares them."""
    lines = [
        "| system | adapter | layers | steps | stored | as full scores | R2G | G2R |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, (steps, groups)), adapters in zip(SYSTEMS.items(), ADAPTERS, strict=True):
        layers = specs(groups)
        found = plan(layers, list(range(steps, 0, -1)), ["a"], {})
        sizes = _gigabytes(found.sample_bytes), _gigabytes(found.score_bytes)
        maps = "contribution" if _pooled(layers) else "map", "map" if has_reference_map(layers[0]) else ""
        count = sum(group.count for group in groups)
        cells = (name, ", ".join(f"`{each}`" for each in adapters.split()), count, steps, *sizes, *maps)
        lines.append("| " + " | ".join(map(str, cells)).rstrip() + " |")
    return "\n".join(lines)


def _pooled(layers: list[LayerSpec]) -> bool:
    """Whether the reference is one token: R2G is then by default what it adds."""
    return all(is_similarity(layer) for layer in layers)


def _gigabytes(count: int) -> str:
    number = count / 1e9
    return f"{number:,.{2 if number < 10 else 1 if number < 100 else 0}f} GB"


if __name__ == "__main__":
    main()
