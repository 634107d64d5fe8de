"""Measure whether the embedded model uses its reference: ``python -m i2am.pipeline.embedded.evaluate``.

Held-out scenes are generated under capture, and everything is computed from the store. Each figure stands
beside its chance level:

(a) correlation of the painted object's mean colour with the reference object's, against shuffled references;
(b) attention of masked queries on the reference object over that object's share of the area (chance 1);
(c) pointing game: the peak of the masked queries' map lies on the object (chance: the object's share);
(d) the painted object's pattern, told by a classifier that was trained on true objects (chance 1 in 6).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.capture import capture
from i2am.pipeline.embedded.painter import ReferencePainter
from i2am.pipeline.embedded.pattern_classifier import told_patterns, train_classifier
from i2am.pipeline.embedded.scenes import Scene, make_scene
from i2am.pipeline.embedded.shapes import PATTERNS
from i2am.pipeline.embedded.weights import FOLDER
from i2am.pipeline.jobs import Call, run_job
from i2am.storage.reading.open import open_run
from i2am.storage.reading.run import Run

Floats = NDArray[np.float64]


class SceneTask:
    """The scene of ``seed`` as a task of a capture job."""

    def __init__(self, seed: int) -> None:
        self.seed, self.id, self.scene = seed, f"{seed:05d}", make_scene(seed)
        self.images, self.texts = self.scene.images, dict[str, str]()


def evaluate(
    pipe: ReferencePainter,
    count: int,
    steps: int,
    guidance: float,
    batch_size: int = 20,
    patterns: bool = True,
) -> dict[str, Any]:
    """Generate the scenes of seeds 0 to ``count`` - 1; (a) to (d), each with its chance level."""
    with tempfile.TemporaryDirectory() as folder:
        run = capture_scenes(pipe, Path(folder, "evaluation.zarr"), count, steps, guidance, batch_size)
        scenes = [make_scene(int(id)) for id in run.samples]
        images = [run.image("generated", id) for id in run.samples]
        shares, hits = _attention(run, scenes)
    painted = np.stack([image[s.target_object].mean(0) for image, s in zip(images, scenes, strict=True)])
    wanted = np.stack([s.reference[s.reference_object].mean(0) for s in scenes])
    masked = np.stack([image[s.mask].mean(0) for image, s in zip(images, scenes, strict=True)])
    area = float(np.mean([s.reference_object.mean() for s in scenes]))
    return {
        "scenes": count,
        "steps": steps,
        "guidance_scale": guidance,
        "colour_correlation": _correlation(painted, wanted),
        "colour_correlation_whole_mask": _correlation(masked, wanted),
        "colour_correlation_chance": _correlation(painted, np.roll(wanted, 1, axis=0)),
        "attention_on_object": float(np.mean(list(shares.values()))),
        "attention_on_object_by_layer": {name: round(float(np.mean(v)), 3) for name, v in shares.items()},
        "attention_on_object_chance": 1.0,
        "pointing_game": float(np.mean(hits)),
        "pointing_game_chance": area,
        **(_patterns(scenes, images) if patterns else {}),
    }


def _patterns(scenes: list[Scene], images: list[NDArray[np.uint8]]) -> dict[str, float]:
    """Shares of objects whose pattern is told right: painted ones, and true ones as the most there can be."""
    classifier, objects = train_classifier(), [s.target_object for s in scenes]
    found = {}
    for name, pictures in (("pattern", images), ("pattern_of_true_objects", [s.target for s in scenes])):
        told = told_patterns(classifier, pictures, objects)
        right = [pattern == s.object.pattern for pattern, s in zip(told, scenes, strict=True)]
        found[name] = float(np.mean(right))
    return {**found, "pattern_chance": 1 / len(PATTERNS)}


def capture_scenes(
    pipe: ReferencePainter, path: Path, count: int, steps: int, guidance: float, batch_size: int = 20
) -> Run:
    """Generate the scenes of seeds 0 to ``count`` - 1 under capture; goes on where it was stopped."""
    tasks = {task.id: task for task in map(SceneTask, range(count))}
    call = Call(find_adapter(pipe).inputs(pipe), {"num_inference_steps": steps, "guidance_scale": guidance})
    with Progress() as progress, capture(pipe, path, samples=list(tasks)) as cap:
        bar = progress.add_task("generate", total=count)
        for start in range(0, count, batch_size):
            run_job(cap, pipe, tasks.__getitem__, call, batch_size, limit=batch_size)
            progress.update(bar, completed=start + batch_size)
    return open_run(path)


def _correlation(a: Floats, b: Floats) -> float:
    """Pearson correlation over scenes, averaged over the colour channels."""
    return float(np.mean([np.corrcoef(a[:, c], b[:, c])[0, 1] for c in range(a.shape[1])]))


def _attention(run: Run, scenes: list[Scene]) -> tuple[dict[str, list[float]], list[bool]]:
    """Per layer and scene the object's attention over its area; per scene whether the map's peak hits it."""
    shares: dict[str, list[float]] = {name: [] for name in run.layers}
    hits = []
    for id, scene in zip(run.samples, scenes, strict=True):
        maps = []
        for name, spec in run.layers.items():
            attention = _softmax(run.read(name, id).logits())[:, :, _cells(scene.mask, spec.gen_grid) > 0.5]
            on_token = attention.mean(axis=(0, 1, 2))
            object_share = _cells(scene.reference_object, spec.ref_grid)
            shares[name].append(float(on_token @ object_share / object_share.mean()))
            maps.append(on_token)
        peak = int(np.mean(maps, axis=0).argmax())
        hits.append(bool(_cells(scene.reference_object, spec.ref_grid)[peak] >= 0.5))
    return shares, hits


def _softmax(logits: NDArray[np.float32]) -> Floats:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    normal: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return normal


def _cells(mask: NDArray[np.bool_], grid: tuple[int, int]) -> Floats:
    """Share of each token's pixels that are in ``mask``, [tokens]."""
    rows, columns = grid
    blocks = mask.reshape(rows, mask.shape[0] // rows, columns, mask.shape[1] // columns)
    share: Floats = blocks.mean(axis=(1, 3)).ravel()
    return share


def main() -> None:
    """Write ``evaluation.json`` beside the weights."""
    parser = argparse.ArgumentParser(description="Evaluate the embedded model on held-out scenes.")
    parser.add_argument("--model", type=Path, default=FOLDER, help="pipeline folder")
    parser.add_argument("--count", type=int, default=200, help="scenes")
    parser.add_argument("--steps", type=int, default=20, help="denoiser steps")
    parser.add_argument("--guidance", type=float, default=1.3, help="guidance scale")
    options = parser.parse_args()
    pipe = ReferencePainter.from_pretrained(options.model, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    figures = evaluate(pipe, options.count, options.steps, options.guidance)
    (options.model / "evaluation.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
