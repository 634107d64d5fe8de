"""The denoising loop that PASD's and SeeSR's pipelines share: a ControlNet before the UNet, tiled latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from PIL import Image
from torch import nn

from tests.standins.ldm import as_batch, as_images

WIDTH = 16


@dataclass
class Output:
    images: list[Image.Image]


class Resnet(nn.Module):
    """A convolution that knows the time."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)
        self.time = nn.Linear(2, after)

    def forward(self, x: torch.Tensor, timestep: Any) -> torch.Tensor:
        angle = torch.as_tensor(timestep).reshape(1, 1).float() / 1000
        emb = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        return F.silu(self.conv(x) + emb[..., None, None])


class Pipeline:
    """[neg, pos] rows in one batch; where latents exceed a tile, one ControlNet and UNet call per tile."""

    def __init__(self, unet: nn.Module, controlnet: nn.Module):
        self.unet, self.controlnet = unet.eval(), controlnet.eval()
        self.scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)

    def references(self, image: torch.Tensor) -> dict[str, Any]:
        """Further arguments of both calls, made from the low-resolution image."""
        return {}

    @torch.no_grad()
    def __call__(
        self, image: Any, prompt: Any = None, generator: Any = None, num_inference_steps: int = 3,
        guidance_scale: float = 1.0, tile_size: int = 320, tile_overlap: int = 2, start_steps: int = 999,
    ) -> Output:  # fmt: skip
        low = as_batch(image)
        guided = guidance_scale > 1
        rows = torch.cat([low] * 2) if guided else low
        text = torch.cat([torch.zeros(len(low), 3, WIDTH), torch.ones(len(low), 3, WIDTH)][not guided :])
        extra = self.references(rows)
        h, w = low.shape[2] // 2, low.shape[3] // 2
        latents = torch.randn(len(low), 4, h, w, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            if t > start_steps:
                continue
            latent_model_input = torch.cat([latents] * 2) if guided else latents

            def denoise(part: torch.Tensor, picture: torch.Tensor, t: Any = t) -> torch.Tensor:
                control = self.controlnet(
                    part, t, encoder_hidden_states=text, controlnet_cond=picture, **extra
                )
                return self.unet(
                    part, t, encoder_hidden_states=text, down_block_additional_residuals=control, **extra
                )

            if h * w <= tile_size * tile_size:
                noise = denoise(latent_model_input, rows)
            else:
                noise = self._tiled(latent_model_input, rows, denoise, tile_size, tile_overlap)
            if guided:
                uncond, cond = noise.chunk(2)
                noise = uncond + guidance_scale * (cond - uncond)
            latents = self.scheduler.step(noise, t, latents).prev_sample
        return Output(as_images(F.interpolate(latents[:, :3], scale_factor=2)))

    def _tiled(self, latent_model_input, image, denoise, tile_size, tile_overlap):  # type: ignore[no-untyped-def]
        _, _, h, w = latent_model_input.size()
        tile_size = min(tile_size, min(h, w))
        grid_rows, grid_cols = (_count(size, tile_size, tile_overlap) for size in (w, h))
        noise = torch.zeros_like(latent_model_input)
        contributors = torch.zeros_like(latent_model_input)
        places, found = [], []
        for row in range(grid_rows):
            for col in range(grid_cols):
                x0 = w - tile_size if row == grid_rows - 1 else row * (tile_size - tile_overlap)
                y0 = h - tile_size if col == grid_cols - 1 else col * (tile_size - tile_overlap)
                x1, y1 = x0 + tile_size, y0 + tile_size
                input_tile = latent_model_input[:, :, y0:y1, x0:x1]
                img_tile = image[:, :, y0 * 2 : y1 * 2, x0 * 2 : x1 * 2]
                found.append(denoise(torch.cat([input_tile], dim=0), torch.cat([img_tile], dim=0)))
                places.append((y0, y1, x0, x1))
        for (y0, y1, x0, x1), part in zip(places, found, strict=True):
            noise[:, :, y0:y1, x0:x1] += part
            contributors[:, :, y0:y1, x0:x1] += 1
        return noise / contributors


def _count(size: int, tile: int, overlap: int) -> int:
    """Tiles on one side."""
    return 1 + int(np.ceil(max(size - tile, 0) / (tile - overlap)))
