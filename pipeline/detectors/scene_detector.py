"""The small supervised detector of the embedded model's scenes, and its training.

``python -m i2am.pipeline.detectors.scene_detector --out DIR`` trains a scaled-down YOLOS in a few minutes on
one core. It can be stopped at any moment and run again with the same ``--out``: it goes on from the last
checkpoint. Its scenes are the painter's training scenes; those below `FIRST_TRAINING_SEED` are held out.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch.nn import functional as F
from transformers import YolosConfig, YolosForObjectDetection

from i2am.pipeline.embedded.scenes import SIZE, Scene, make_scene
from i2am.pipeline.embedded.train import FIRST_TRAINING_SEED

FOLDER = Path(__file__).parent / "scene-detector"
"""The trained weights that come with the project: a transformers folder, float16 safetensors."""

OBJECT, NOTHING = 0, 1
BATCH = 16
"""Scenes of a batch; each gives two pictures with the object and one without."""

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def build_detector() -> YolosForObjectDetection:
    """A YOLOS with fresh weights: 0.3 million parameters, 64 by 64 images, one detection token."""
    return YolosForObjectDetection(
        YolosConfig(
            image_size=[SIZE, SIZE], patch_size=8, num_detection_tokens=1, num_labels=1,
            hidden_size=96, num_hidden_layers=4, num_attention_heads=4, intermediate_size=192,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, use_mid_position_embeddings=False,
        )
    )  # fmt: skip


def scene_batch(scenes: list[Scene]) -> Batch:
    """Pictures [n, 3, y, x] in [-1, 1]; boxes [n, 4], centre and size in shares of the picture; classes."""
    pictures = [image for s in scenes for image in (s.target, s.reference, s.source)]
    boxes = [box for s in scenes for box in (s.target_box, s.reference_box, (0, 0, SIZE, SIZE))]
    corners = torch.tensor(boxes, dtype=torch.float32) / SIZE
    (top, left, bottom, right) = corners.T
    placed = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], 1)
    classes = torch.tensor([OBJECT, OBJECT, NOTHING] * len(scenes))
    return to_input(np.stack(pictures)), placed, classes


def to_input(pictures: np.ndarray[Any, Any]) -> torch.Tensor:
    """Uint8 [n, y, x, 3] as the model's input, [n, 3, y, x] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def detection_loss(outputs: Any, boxes: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """YOLOS's loss (DETR's: cross entropy, L1 and generalised IoU), where one token needs no matching."""
    found, there = outputs.pred_boxes[:, 0], classes == OBJECT
    loss: torch.Tensor = F.cross_entropy(outputs.logits[:, 0], classes)
    return (
        loss + 5 * F.l1_loss(found[there], boxes[there]) + 2 * (1 - _giou(found[there], boxes[there])).mean()
    )


def _giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised IoU of boxes [n, 4] (centre, size) one by one."""
    low_a, high_a, low_b, high_b = (
        x for box in (a, b) for x in (box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2)
    )
    shared = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(1)
    union = a[:, 2:].prod(1) + b[:, 2:].prod(1) - shared
    hull = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).prod(1)
    return shared / union - (hull - union) / hull


def train(out: Path, steps: int, every: int = 200) -> YolosForObjectDetection:
    """Train, or go on from ``out/checkpoint.pt``; leave a transformers folder in ``out``."""
    torch.manual_seed(0)
    model = build_detector().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps, pct_start=0.1)
    checkpoint, start = out / "checkpoint.pt", 0
    out.mkdir(parents=True, exist_ok=True)
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule}
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        start = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    with Progress() as progress:
        bar = progress.add_task("train", total=steps, completed=start)
        for step in range(start, steps):
            first = FIRST_TRAINING_SEED + step * BATCH
            pictures, boxes, classes = scene_batch([make_scene(seed) for seed in range(first, first + BATCH)])
            loss = detection_loss(model(pixel_values=pictures), boxes, classes)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            progress.update(bar, completed=step + 1, description=f"loss {loss.item():.3f}")
            if (step + 1) % every == 0 or step + 1 == steps:
                state = {name: part.state_dict() for name, part in parts.items()}
                torch.save(state | {"step": step + 1}, out / "checkpoint.tmp")
                os.replace(out / "checkpoint.tmp", checkpoint)
    model.eval().half().save_pretrained(out)
    return model.float()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the detector of the embedded model's scenes.")
    parser.add_argument("--out", type=Path, default=Path("out/scene-detector"), help="weights and checkpoint")
    parser.add_argument("--steps", type=int, default=2000, help=f"batches of {BATCH} scenes")
    options = parser.parse_args()
    train(options.out, options.steps)


if __name__ == "__main__":
    main()
