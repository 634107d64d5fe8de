"""PASD's structure: pixel-aware attention to the ControlNet's features on the same grid; full and light."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from tests.standins.restoration import WIDTH, Pipeline, Resnet

CHANNELS = (16, 16, 32, 32)
HEADS = 4


def transformer(channels: int, width: int) -> Transformer2DModel:
    return Transformer2DModel(
        HEADS,
        channels // HEADS,
        in_channels=channels,
        num_layers=1,
        cross_attention_dim=width,
        norm_num_groups=4,
    )


class LightBlock(nn.Module):
    """Text attention, then attention to the pixels."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        size = {"heads": HEADS, "dim_head": channels // HEADS}
        self.norm2, self.norm2_plus = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn2 = Attention(channels, cross_attention_dim=WIDTH, **size)
        self.attn2_plus = Attention(channels, cross_attention_dim=width, **size)

    def forward(self, x: torch.Tensor, text: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        x = self.attn2(self.norm2(x), encoder_hidden_states=text) + x
        return self.attn2_plus(self.norm2_plus(x), encoder_hidden_states=pixels) + x


class LightTransformer(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([LightBlock(channels, width)])

    def forward(self, hidden_states: torch.Tensor, text: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        rows, columns = hidden_states.shape[2:]
        tokens = hidden_states.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, text, pixels)
        return tokens.transpose(1, 2).unflatten(2, (rows, columns)) + hidden_states


class UpBlock(nn.Module):
    """Three layers; all have pixel attention in the full model, and but for the first block in the light."""

    def __init__(self, before: int, channels: int, width: int, light: bool, first: bool, last: bool):
        super().__init__()
        widths = [before + width, channels + width, channels + width]
        self.resnets = nn.ModuleList(Resnet(n, channels) for n in widths)
        if not light:
            self.pixel_attentions = nn.ModuleList(transformer(channels, width) for _ in range(3))
        elif not first:
            self.attentions = nn.ModuleList(LightTransformer(channels, width) for _ in range(3))
        self.upsamplers = None if last else nn.ModuleList([nn.Upsample(scale_factor=2)])

    def forward(self, x: torch.Tensor, t: Any, skip: torch.Tensor, text: torch.Tensor, pixels: torch.Tensor):
        own = pixels.flatten(2).transpose(1, 2)
        for index, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skip], 1), t)
            if hasattr(self, "pixel_attentions"):
                x = self.pixel_attentions[index](x, encoder_hidden_states=own, return_dict=False)[0]
            elif hasattr(self, "attentions"):
                x = self.attentions[index](x, text, own)
        return self.upsamplers[0](x) if self.upsamplers else x


class Encoder(nn.Module):
    """Four resolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, 16, 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Resnet(before, after) for before, after in zip((16, *CHANNELS), CHANNELS, strict=False)
        )

    def encode(self, x: torch.Tensor, t: Any) -> list[torch.Tensor]:
        h, found = self.conv_in(x), []
        for index, block in enumerate(self.down_blocks):
            h = block(h if index == 0 else F.avg_pool2d(h, 2), t)
            found.append(h)
        return found


class ControlNetModel(Encoder):
    def __init__(self) -> None:
        super().__init__(7)

    def forward(self, sample, timestep, encoder_hidden_states, controlnet_cond, **kwargs):  # type: ignore[no-untyped-def]
        picture = F.avg_pool2d(controlnet_cond, 2)
        return [feature * 3 for feature in self.encode(torch.cat([sample, picture], 1), timestep)]


class UNet2DConditionModel(Encoder):
    def __init__(self, light: bool):
        super().__init__(4)
        self.mid_block = Resnet(32, 32)
        blocks, before = [], 32
        for index, width in enumerate(reversed(CHANNELS)):
            blocks.append(UpBlock(before, width, width, light, index == 0, index == 3))
            before = width
        self.up_blocks = nn.ModuleList(blocks)
        self.conv_out = nn.Conv2d(before, 4, 3, padding=1)

    def forward(
        self, sample, timestep, encoder_hidden_states, down_block_additional_residuals=None, **kwargs
    ):  # type: ignore[no-untyped-def]
        skips = self.encode(sample, timestep)
        h = self.mid_block(skips[-1], timestep)
        pixels = list(down_block_additional_residuals)
        for block in self.up_blocks:
            h = block(h, timestep, skips.pop(), encoder_hidden_states, pixels.pop())
        return self.conv_out(h)


def make(light: bool = False) -> Pipeline:
    """PASD's pipeline with random weights."""
    torch.manual_seed(0)
    return Pipeline(UNet2DConditionModel(light), ControlNetModel())
