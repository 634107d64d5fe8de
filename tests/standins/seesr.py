"""SeeSR's structure: image attention to a tagger's tokens in the UNet (16 layers) and the ControlNet (7)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from tests.standins.restoration import WIDTH, Pipeline, Resnet

CHANNELS, HEADS = (16, 16, 32, 32), (1, 2, 4, 4)
TAGGER = 24
"""Width of the tagger's tokens."""


def transformer(level: int, width: int) -> Transformer2DModel:
    channels, heads = CHANNELS[level], HEADS[level]
    return Transformer2DModel(
        heads,
        channels // heads,
        in_channels=channels,
        num_layers=1,
        cross_attention_dim=width,
        norm_num_groups=4,
    )


class CrossAttnBlock(nn.Module):
    """Layers of a convolution, text attention and image attention."""

    def __init__(self, level: int, widths: list[int]):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width, CHANNELS[level]) for width in widths)
        self.attentions = nn.ModuleList(transformer(level, WIDTH) for _ in widths)
        self.image_attentions = nn.ModuleList(transformer(level, TAGGER) for _ in widths)

    def forward(self, x, t, text, tags, skips=()):  # type: ignore[no-untyped-def]
        skips = list(skips)
        for resnet, attention, image in zip(
            self.resnets, self.attentions, self.image_attentions, strict=True
        ):
            x = resnet(torch.cat([x, skips.pop()], 1) if skips else x, t)
            x = attention(x, encoder_hidden_states=text, return_dict=False)[0]
            x = image(x, encoder_hidden_states=tags, return_dict=False)[0]
        return x


class Plain(nn.Module):
    def __init__(self, width: int, after: int):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(width, after)])

    def forward(self, x, t, *_):  # type: ignore[no-untyped-def]
        return self.resnets[0](x, t)


class Encoder(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, 16, 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [*(CrossAttnBlock(i, [(16, *CHANNELS)[i], CHANNELS[i]]) for i in range(3)), Plain(32, 32)]
        )
        self.mid_block = CrossAttnBlock(3, [32])

    def encode(self, x, t, text, tags):  # type: ignore[no-untyped-def]
        h, found = self.conv_in(x), []
        for index, block in enumerate(self.down_blocks):
            h = block(h if index == 0 else F.avg_pool2d(h, 2), t, text, tags)
            found.append(h)
        return self.mid_block(h, t, text, tags), found


class ControlNetModel(Encoder):
    def __init__(self) -> None:
        super().__init__(7)

    def forward(  # type: ignore[no-untyped-def]
        self, sample, timestep, encoder_hidden_states, controlnet_cond, image_encoder_hidden_states=None
    ):
        x = torch.cat([sample, F.avg_pool2d(controlnet_cond, 2)], 1)
        mid, found = self.encode(x, timestep, encoder_hidden_states, image_encoder_hidden_states)
        return [*found, mid]


class UNet2DConditionModel(Encoder):
    def __init__(self) -> None:
        super().__init__(4)
        self.up_blocks = nn.ModuleList([Plain(64, 32)])
        before = 32
        for level in (2, 1, 0):
            after = CHANNELS[level]
            self.up_blocks.append(CrossAttnBlock(level, [before + after, after, after]))
            before = after
        self.conv_out = nn.Conv2d(before, 4, 3, padding=1)

    def forward(  # type: ignore[no-untyped-def]
        self, sample, timestep, encoder_hidden_states, image_encoder_hidden_states=None,
        down_block_additional_residuals=None,
    ):  # fmt: skip
        text, tags = encoder_hidden_states, image_encoder_hidden_states
        *control, mid = down_block_additional_residuals
        h, skips = self.encode(sample, timestep, text, tags)
        h = h + mid
        skips = [skip + own for skip, own in zip(skips, control, strict=True)]
        h = self.up_blocks[0](torch.cat([h, skips.pop()], 1), timestep)
        for block in self.up_blocks[1:]:
            h = block(F.interpolate(h, scale_factor=2), timestep, text, tags, [skips.pop()])
        return self.conv_out(h)


class SeeSRPipeline(Pipeline):
    """The tagger sees the whole image at one size, whatever the tiles."""

    def __init__(self, unet: nn.Module, controlnet: nn.Module):
        super().__init__(unet, controlnet)
        self.tagger = nn.Conv2d(3, TAGGER, 3, padding=1)

    def references(self, image: torch.Tensor) -> dict[str, Any]:
        patches = self.tagger(F.interpolate(image, (12, 12), mode="bilinear")).flatten(2).transpose(1, 2)
        tokens = torch.cat([patches.mean(1, keepdim=True), patches], 1)
        return {"image_encoder_hidden_states": tokens}


def make() -> SeeSRPipeline:
    """SeeSR's pipeline with random weights."""
    torch.manual_seed(0)
    return SeeSRPipeline(UNet2DConditionModel(), ControlNetModel())
