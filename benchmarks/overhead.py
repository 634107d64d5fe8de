"""Capture's cost in time: a generation with capture over the same generation without, side by side.

A UNet of Stable Diffusion 1.5's shape, random weights, 32x32 latents and 257 tokens, float32 on the CPU, two
guided rows; and joint blocks of FLUX's shape, fewer and with shorter sequences. A B A B; medians.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from i2am.pipeline.capture import capture

RESULTS = Path(__file__).parent / "results" / "overhead.json"


class Unet:
    """The denoising loop alone: text and image encoders would only dilute the ratio."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(
            sample_size=32,
            cross_attention_dim=768,
            attention_head_dim=8,
            block_out_channels=(320, 640, 1280, 1280),
        ).eval()
        self.text_encoder = SimpleNamespace()
        self.scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)

    @torch.no_grad()
    def __call__(self, steps: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(2, 257, 768, generator=generator)
        latents = torch.randn(1, 4, 32, 32, generator=generator)
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            noise = self.unet(torch.cat([latents] * 2), t, encoder_hidden_states=tokens).sample
            uncond, cond = noise.chunk(2)
            latents = self.scheduler.step(uncond + 5 * (cond - uncond), t, latents).prev_sample
        return latents


class FluxKontextBlocks:
    """Two double and two single blocks of FLUX's width: 512 text, 256 generated and 256 reference tokens."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.transformer = FluxTransformer2DModel(num_layers=2, num_single_layers=2).eval()
        self.scheduler = SimpleNamespace(timesteps=[])

    @torch.no_grad()
    def __call__(self, steps: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        ids = torch.cartesian_prod(torch.arange(2), torch.arange(16), torch.arange(16)).float()
        self.scheduler.timesteps = torch.linspace(1000, 100, steps)
        hidden = torch.randn(1, 512, 64, generator=generator)
        for t in self.scheduler.timesteps:
            hidden = (
                hidden
                - 0.1
                * self.transformer(
                    hidden_states=hidden,
                    timestep=t.reshape(1) / 1000,
                    encoder_hidden_states=torch.randn(1, 512, 4096, generator=generator),
                    pooled_projections=torch.randn(1, 768, generator=generator),
                    txt_ids=torch.zeros(512, 3),
                    img_ids=ids,
                ).sample
            )
        return hidden


def measure(pipe: Any, adapter: str, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds without and with capture, in turn."""
    folder = Path(tempfile.mkdtemp())
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    results = []

    def timed(name: str, run: Callable[[], torch.Tensor]) -> None:
        started = time.perf_counter()
        results.append(run())
        seconds[name].append(time.perf_counter() - started)

    def captured(number: int) -> torch.Tensor:
        with capture(pipe, folder / f"{number}.zarr", ["a"], adapter=adapter) as cap, cap.sample("a"):
            return pipe(steps)

    try:
        pipe(1)
        for number in range(rounds):
            timed("without", lambda: pipe(steps))
            timed("with", lambda number=number: captured(number))  # type: ignore[misc]
        size = sum(path.stat().st_size for path in (folder / "0.zarr").rglob("*") if path.is_file())
    finally:
        shutil.rmtree(folder)
    if not all(torch.equal(results[0], other) for other in results):
        raise RuntimeError("capture changed what was generated")
    ratios = [b / a for a, b in zip(seconds["without"], seconds["with"], strict=True)]
    return {"seconds": seconds, "ratios": ratios, "median": statistics.median(ratios), "bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    found = {
        "sd15-unet, 32x32 latents, 257 tokens": measure(Unet(), "diffusers-text", args.steps, args.rounds),
        "flux blocks, 512 + 256 + 256 tokens": measure(
            FluxKontextBlocks(), "flux-kontext", args.steps, args.rounds
        ),
    }
    for name, each in found.items():
        print(f"{name}: {each['median']:.3f} ({min(each['ratios']):.3f} to {max(each['ratios']):.3f})")
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
