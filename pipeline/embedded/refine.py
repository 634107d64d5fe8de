"""Train custom and refined models, several seeds: ``python -m i2am.pipeline.embedded.refine --out DIR``.

Both are the embedded model at half its width and a short training; the refined one's loss has the variance of
attention scores inside the mask added, as the paper's refinement does. Held-out scenes are generated under
capture, so that every number of the comparison comes from stores. It can be stopped and run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from i2am.pipeline.embedded.evaluate import capture_scenes
from i2am.pipeline.embedded.painter import ReferencePainter
from i2am.pipeline.embedded.train import Recipe, train
from i2am.pipeline.interventions.attention_loss import Kind

MODELS = ("custom", "refined")

READING_STEPS = 300
"""Steps at the beginning of each training, in which the encoder alone learns."""


def refine(
    out: Path, seeds: int, scenes: int, kind: Kind, weight: float, steps: int, checkpoints: int = 2
) -> list[Path]:
    """Train what is not trained yet; capture ``scenes`` held-out scenes of each model at each checkpoint.

    Returns the runs ``out/MODEL-SEED-STEP.zarr``; ``out/MODEL-SEED/log.jsonl`` holds the losses.
    """
    runs = []
    for seed in range(seeds):
        for model in MODELS:
            recipe = Recipe(
                steps=READING_STEPS + steps,
                reading_steps=READING_STEPS,
                batch_size=8,
                seed=seed,
                widths=(16, 32, 64),
                attention=kind,
                attention_weight=weight if model == "refined" else 0.0,
            )
            for number in range(1, checkpoints + 1):
                step = READING_STEPS + steps * number // checkpoints
                folder = out / f"{model}-{seed}"
                weights = folder / ("model" if step == recipe.steps else f"model-{step}")
                if not (weights / "training.json").exists():
                    train(folder, recipe, until=step)
                pipe = ReferencePainter.from_pretrained(weights, use_safetensors=True).to(torch.float32)
                pipe.set_progress_bar_config(disable=True)
                runs.append(out / f"{model}-{seed}-{step}.zarr")
                capture_scenes(pipe, runs[-1], scenes, steps=10, guidance=1.3)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and capture custom and refined models.")
    parser.add_argument("--out", type=Path, required=True, help="folder of trainings and runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=40, help="held-out scenes of each model")
    parser.add_argument("--kind", choices=["score_variance", "centre_variation"], default="score_variance")
    parser.add_argument("--weight", type=float, default=0.02, help="of the attention loss")
    parser.add_argument("--checkpoints", type=int, default=2, help="of each training, the last one included")
    parser.add_argument("--steps", type=int, default=400, help="painting steps of each training")
    refine(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
