"""Tell the pattern of an object from its pixels: a small network that is trained on true objects alone.

Evaluation asks it about painted objects: a pattern recognised there was carried over from the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from i2am.pipeline.embedded.scenes import Image, Mask, bounding_box, make_scene
from i2am.pipeline.embedded.shapes import PATTERNS

FIRST_SEED = 500_000
"""Its scenes: neither the painter's training scenes nor those of an evaluation."""

EDGE = 32
"""Objects are scaled to EDGE by EDGE pixels."""


def train_classifier(steps: int = 600, batch_size: int = 48) -> nn.Module:
    """The classifier, trained anew; the same weights on every run of one machine."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _network()
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
        names = list(PATTERNS)
        for step in range(steps):
            seeds = range(FIRST_SEED + step * batch_size, FIRST_SEED + (step + 1) * batch_size)
            scenes = [make_scene(seed) for seed in seeds]
            pictures = [(s.target, s.target_object) for s in scenes]
            pictures += [(s.reference, s.reference_object) for s in scenes]
            crops = _crops(*zip(*pictures, strict=True))
            crops[:, :3] += 0.1 * torch.rand(len(crops), 1, 1, 1) * torch.randn_like(crops[:, :3])
            truth = torch.tensor([names.index(s.object.pattern) for s in scenes] * 2)
            loss = F.cross_entropy(model(crops), truth)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def told_patterns(model: nn.Module, images: Sequence[Image], objects: Sequence[Mask]) -> list[str]:
    """The pattern that ``model`` sees in each image, at the pixels of its object."""
    names = list(PATTERNS)
    return [names[index] for index in model(_crops(images, objects)).argmax(1).tolist()]


def _network() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]

    return nn.Sequential(
        *block(4, 24), nn.MaxPool2d(2), *block(24, 48), nn.MaxPool2d(2), *block(48, 64), *block(64, 64),
        nn.MaxPool2d(2), *block(64, 64), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 16, len(PATTERNS)),
    )  # fmt: skip


def _crops(images: Sequence[Image], objects: Sequence[Mask]) -> torch.Tensor:
    """Each object in its square box, other pixels 0, with its mask: [object, 4, EDGE, EDGE], standardised."""
    return torch.stack([_crop(image, mask) for image, mask in zip(images, objects, strict=True)])


def _crop(image: Image, mask: Mask) -> torch.Tensor:
    top, left, bottom, right = bounding_box(mask)
    edge = max(bottom - top, right - left)
    pixels: NDArray[np.float32] = image.astype(np.float32)
    inside = pixels[mask]
    pixels = np.where(mask[..., None], (pixels - inside.mean(0)) / (inside.std() + 8.0), 0)
    planes = np.zeros((edge, edge, 4), np.float32)
    planes[: bottom - top, : right - left, :3] = pixels[top:bottom, left:right]
    planes[: bottom - top, : right - left, 3] = mask[top:bottom, left:right]
    square = torch.from_numpy(planes).permute(2, 0, 1)[None]
    return F.interpolate(square, (EDGE, EDGE), mode="bilinear", antialias=True, align_corners=False)[0]
