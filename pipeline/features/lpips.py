"""LPIPS distances of pairs of images, by torchmetrics, from AlexNet weights on this machine.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from i2am.pipeline.features.contract import FeatureModel, Pixels, weights_fingerprint
from i2am.pipeline.features.inception import hub_file
from i2am.storage.errors import MissingDependency, NotFound

BACKBONE = "alexnet-owt-7be5be79.pth"
"""Where torchvision looks for it; the small layers on top of it come with torchmetrics."""

SMALLEST = 32
"""Edge in pixels below which nothing is left after AlexNet's pools; smaller images are enlarged."""


def load_lpips(device: str) -> FeatureModel:
    """LPIPS of pairs [pair, 2, y, x, 3], one number each; 0 for equal images."""
    for package in ("torchmetrics", "torchvision"):
        if find_spec(package) is None:
            raise MissingDependency(f"LPIPS needs {package}", remedy="pip install 'i2am[features]'")
    if not hub_file(BACKBONE).is_file():
        raise NotFound(
            f"no AlexNet weights for LPIPS at {hub_file(BACKBONE)}",
            remedy=f"download https://download.pytorch.org/models/{BACKBONE} to that place",
        )
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    network = LearnedPerceptualImagePatchSimilarity("alex", reduction="none").net.to(device)

    @torch.no_grad()
    def extract(pairs: Pixels) -> Any:
        images = torch.from_numpy(pairs).to(device, torch.float32).permute(1, 0, 4, 2, 3) / 127.5 - 1
        if min(images.shape[-2:]) < SMALLEST:
            size = [max(SMALLEST, edge) for edge in images.shape[-2:]]
            images = torch.stack([torch.nn.functional.interpolate(each, size) for each in images])
        return network(images[0], images[1]).reshape(-1, 1).cpu().numpy()

    return FeatureModel("lpips", weights_fingerprint(network), extract)
