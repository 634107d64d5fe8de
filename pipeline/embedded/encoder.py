"""The reference encoder: an image becomes a grid of patch tokens for cross-attention."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


class _Residual(nn.Module):
    """Pre-activation residual block on a feature map; keeps its shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        out: torch.Tensor = x + self.conv2(nn.functional.silu(self.norm2(h)))
        return out


class ReferenceEncoder(ModelMixin, ConfigMixin):
    """Encode a reference image into patch tokens, one for each 4 by 4 pixels, row by row.

    The receptive field is local (39 pixels), so a token speaks of its own place in the reference and an
    attention map over tokens can be read as a map over the image.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, image_size: int = 64, channels: int = 64, token_dim: int = 96, blocks: int = 2
    ) -> None:
        super().__init__()
        self.grid = (image_size // 4, image_size // 4)
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels // 2, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
        )
        self.body = nn.Sequential(*(_Residual(channels) for _ in range(blocks)))
        self.project = nn.Linear(channels, token_dim)
        self.position = nn.Parameter(0.02 * torch.randn(1, self.grid[0] * self.grid[1], token_dim))
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Tokens [batch, rows * columns, token_dim] of ``image`` [batch, 3, y, x] in [-1, 1]."""
        features = self.body(self.stem(image)).flatten(2).transpose(1, 2)
        tokens: torch.Tensor = self.norm(self.project(features) + self.position)
        return tokens
