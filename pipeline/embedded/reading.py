"""What a token of the reference must tell of its place: the loss that teaches the encoder to read objects.

Real systems bring an encoder that was trained to understand images; this one learns it beside the painting.
It concerns the tokens alone: where the UNet looks is left to the UNet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from i2am.pipeline.embedded.painter import PLACES, place_in_box
from i2am.pipeline.embedded.scenes import Scene
from i2am.pipeline.embedded.shapes import PATTERNS

PATCH = 4
"""Edge of a token's patch, in pixels."""

TRUTH = ("object", "pattern", "traits")


def reading_truth(scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """``object`` masks [scene, 1, y, x], ``pattern`` numbers [scene], ``traits`` [scene, 8].

    Traits are the two colours in [-1, 1], and sine and cosine of the object's angle.
    """
    names = list(PATTERNS)
    traits = [
        [2 * level - 1 for colour in s.object.colours for level in colour]
        + [float(np.sin(s.object.angle)), float(np.cos(s.object.angle))]
        for s in scenes
    ]
    return {
        "object": torch.from_numpy(np.stack([s.reference_object for s in scenes]))[:, None].float(),
        "pattern": torch.tensor([names.index(s.object.pattern) for s in scenes]),
        "traits": torch.tensor(traits),
    }


class Reader(nn.Module):
    """Reads every token by one linear map: is it on the object, and which; where in its box."""

    def __init__(self, token_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(token_dim, 1 + len(PATTERNS) + 8 + PLACES)

    def forward(
        self, tokens: torch.Tensor, object: torch.Tensor, pattern: torch.Tensor, traits: torch.Tensor
    ) -> torch.Tensor:
        """Loss of ``tokens`` [scene, token, token_dim]; what an object alone has counts on its tokens."""
        read = self.linear(tokens).split([1, len(PATTERNS), traits.shape[1] + PLACES], 2)
        share = F.avg_pool2d(object, PATCH).flatten(1)  # [scene, token]
        place = place_in_box(object, PATCH).flatten(2).transpose(1, 2)
        wanted = torch.cat([traits[:, None].expand(-1, share.shape[1], -1), place], 2)
        labels = pattern[:, None].expand_as(share)
        told = F.cross_entropy(read[1].flatten(0, 1), labels.flatten(), reduction="none").view_as(share)
        described = told + (read[2] - wanted).square().sum(2)
        found = F.binary_cross_entropy_with_logits(read[0][..., 0], share)
        loss: torch.Tensor = found + (described * share).sum() / share.sum()
        return loss
