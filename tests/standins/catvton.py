"""CatVTON's structure: person and garment on one canvas of latents, an inpainting UNet without words."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn

from tests.standins.restoration import Output


class Skip(nn.Module):
    """Cross-attention that is left out."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


class CatVTONPipeline:
    """The garment's latents come last along ``axis`` (-2: below), or first; the mask keeps them."""

    def __init__(self, axis: int = -2, first: bool = False) -> None:
        torch.manual_seed(0)
        self.noise_scheduler, self.axis, self.first = DDIMScheduler(clip_sample=False), axis, first
        self.unet = UNet2DConditionModel(
            block_out_channels=(16, 16), layers_per_block=1, in_channels=9, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=8,
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16,
        ).eval()  # fmt: skip
        kinds = self.unet.attn_processors
        self.unet.set_attn_processor({k: Skip() if "attn2" in k else v for k, v in kinds.items()})

    def join(self, person: torch.Tensor, garment: torch.Tensor) -> torch.Tensor:
        return torch.cat([garment, person] if self.first else [person, garment], self.axis)

    @torch.no_grad()
    def __call__(  # type: ignore[no-untyped-def]
        self, image, condition_image, mask, num_inference_steps, guidance_scale, generator
    ) -> Output:
        kept = self.join(image * (mask < 0.5), condition_image)
        masks = self.join(mask, torch.zeros_like(condition_image[:, :1]))
        latents, count = torch.randn(kept.shape, generator=generator), len(image)
        if guidance_scale > 1:
            kept = torch.cat([self.join(image * (mask < 0.5), torch.zeros_like(condition_image)), kept])
            masks = torch.cat([masks] * 2)
        self.noise_scheduler.set_timesteps(num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            rows = torch.cat([latents] * (len(kept) // count))
            noise = self.unet(
                torch.cat([rows, masks, kept], 1), t, encoder_hidden_states=None, return_dict=False
            )[0]
            if guidance_scale > 1:
                uncond, cond = noise.chunk(2)
                noise = uncond + guidance_scale * (cond - uncond)
            latents = self.noise_scheduler.step(noise, t, latents).prev_sample
        size = image.shape[self.axis]
        start = latents.shape[self.axis] - size if self.first else 0
        person = latents.narrow(self.axis, start, size)[:, :3]
        return Output(list(person.sigmoid().movedim(1, -1).numpy()))
