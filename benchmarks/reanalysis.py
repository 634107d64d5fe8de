"""Asking a stored run again, against generating its images again.

Usage: python -m benchmarks.reanalysis [--samples 4] [--steps 20] [--rounds 3] [--out FILE]

A run of the embedded model, its marginals present. A: all five levels in both directions, of every sample, as
`attribution_maps` gives them. B: the same images generated again, without any capture: less than what a user
without a store would have to do. In turn (A B A B ...), the ratio of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.maps.question import LEVELS
from i2am.analysis.marginals.quantities import REGION_IMAGE
from i2am.analysis.marginals.store import open_marginals
from i2am.flows.capture.job import run_capture
from i2am.flows.config.models import CaptureConfig
from i2am.pipeline.embedded.scenes import make_scene
from i2am.pipeline.embedded.weights import load_pipeline
from i2am.storage.reading.open import open_run
from i2am.storage.reading.run import Run


def ask(run: Run) -> None:
    """All levels, both directions, all samples."""
    for direction in ("r2g", "g2r"):
        for level in LEVELS:
            at = REGION_IMAGE[direction] if level == "specific" else None
            attribution_maps(run, direction, level, at=at).compute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "reanalysis.json")
    args = parser.parse_args()
    settings = {
        "pipeline": "embedded",
        "samples": {"scenes": {"count": args.samples, "first_seed": 10_000}},
        "call": {"num_inference_steps": args.steps},
        "batch_size": args.samples,
    }
    scenes = [make_scene(10_000 + number) for number in range(args.samples)]
    pipe = load_pipeline()
    times: dict[str, list[float]] = {"ask": [], "generate": []}
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run.zarr")
        run_capture(CaptureConfig.model_validate(settings | {"out": out}))
        run = open_run(out)
        cache = open_marginals(run)
        for layer in run.layers.values():
            for sample in run.samples:
                cache.load_or_compute(layer, sample)
        for _ in range(args.rounds):
            start = time.perf_counter()
            ask(run)
            times["ask"].append(time.perf_counter() - start)
            start = time.perf_counter()
            pipe(
                image=[scene.source for scene in scenes],
                mask_image=[scene.mask for scene in scenes],
                reference_image=[scene.reference for scene in scenes],
                num_inference_steps=args.steps,
                generator=[torch.Generator().manual_seed(10_000 + number) for number in range(args.samples)],
            )
            times["generate"].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["generate"] / medians["ask"]
    row = {
        "samples": args.samples,
        "steps": args.steps,
        **{f"{name}_seconds": round(value, 4) for name, value in medians.items()},
        "ratio": round(ratio, 1),
    }
    Console(width=110).print(
        f"{args.samples} samples, {args.steps} steps: asking {medians['ask']:.3f} s, "
        f"generating {medians['generate']:.2f} s, ratio {ratio:.0f}"
    )
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
