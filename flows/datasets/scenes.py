"""Procedural scenes of the embedded model."""

from __future__ import annotations

from i2am.flows.config.samples import Scenes
from i2am.flows.datasets.common import SampleInput, SampleSet


def open_scenes(config: Scenes) -> SampleSet:
    """One scene for each seed, with the id ``scene-SEED``."""

    def load(id: str) -> SampleInput:
        from PIL import Image

        from i2am.pipeline.embedded.scenes import make_scene

        arrays = make_scene(seeds[id]).images
        images = {
            name: Image.fromarray(a).convert("L" if a.ndim == 2 else "RGB") for name, a in arrays.items()
        }
        return SampleInput(id, seeds[id], images)

    seeds = {f"scene-{seed:07d}": seed for seed in range(config.first_seed, config.first_seed + config.count)}
    return SampleSet(seeds, load)
