"""InstantID's structure: attention processors of its own, and a ControlNet that is given a face's tokens."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_output import StableDiffusionXLPipelineOutput
from torch import nn

from tests.pipeline import unet_models

FACE, WIDTH = 6, unet_models.WIDTH
"""Tokens of a face, and their width."""


class RegionControler:
    prompt_image_conditioning: list[dict[str, Any]] = []


region_control = RegionControler()


class IPAttnProcessor(nn.Module):
    """The last of the given tokens are the face's: a softmax of its own, scaled and added."""

    def __init__(self, hidden_size: int, scale: float):
        super().__init__()
        self.scale, self.num_tokens = scale, FACE
        self.to_k_ip = nn.Linear(WIDTH, hidden_size, bias=False)
        self.to_v_ip = nn.Linear(WIDTH, hidden_size, bias=False)

    def forward(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any, **kwargs: Any) -> Any:
        text, face = encoder_hidden_states.split([encoder_hidden_states.shape[1] - FACE, FACE], 1)
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        parts = []
        for key, value in ((attn.to_k(text), attn.to_v(text)), (self.to_k_ip(face), self.to_v_ip(face))):
            weights = attn.get_attention_scores(query, attn.head_to_batch_dim(key))
            parts.append(attn.batch_to_head_dim(weights @ attn.head_to_batch_dim(value)))
        if len(region_control.prompt_image_conditioning) == 1:
            mask = region_control.prompt_image_conditioning[0]["region_mask"]
            parts[1] = parts[1] * (1.0 if mask is None else mask[: parts[1].shape[1], None])
        return attn.to_out[1](attn.to_out[0](parts[0] + self.scale * parts[1]))


class StableDiffusionXLInstantIDPipeline(StableDiffusionXLControlNetPipeline):  # type: ignore[misc]
    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, prompt_embeds: torch.Tensor, face: torch.Tensor, image: torch.Tensor, guidance_scale: float,
        num_inference_steps: int, height: int, width: int,
    ) -> Any:  # fmt: skip
        count, self._guidance_scale = len(prompt_embeds), guidance_scale
        noise = torch.randn(count, 4, height // 2, width // 2, generator=torch.Generator().manual_seed(0))
        pooled, sizes = prompt_embeds.mean(1), torch.zeros(count, 6)
        text = prompt_embeds
        if guidance_scale > 1:
            text, face = (torch.cat([torch.zeros_like(x), x]) for x in (text, face))
            pooled, sizes, image = (torch.cat([x] * 2) for x in (pooled, sizes, image))
        added = {"text_embeds": pooled, "time_ids": sizes}
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            latents = torch.cat([noise] * 2) if guidance_scale > 1 else noise
            down, middle = self.controlnet(
                latents, t, encoder_hidden_states=face, controlnet_cond=image, added_cond_kwargs=added,
                return_dict=False,
            )  # fmt: skip
            found = self.unet(
                latents, t, encoder_hidden_states=torch.cat([text, face], 1), added_cond_kwargs=added,
                down_block_additional_residuals=down, mid_block_additional_residual=middle,
            ).sample  # fmt: skip
            if guidance_scale > 1:
                uncond, cond = found.chunk(2)
                found = uncond + guidance_scale * (cond - uncond)
            noise = self.scheduler.step(found, t, noise).prev_sample
        return StableDiffusionXLPipelineOutput(images=noise[:, :3].sigmoid().permute(0, 2, 3, 1).numpy())


def make(scale: float = 0.8) -> StableDiffusionXLInstantIDPipeline:
    """SDXL with the ControlNet and the processors; a face is given as the tokens of its resampler."""
    base = unet_models.sdxl()
    torch.manual_seed(3)
    controlnet = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(16, 32)).eval()
    parts = {name: part for name, part in base.components.items() if name != "image_encoder"}
    pipe = StableDiffusionXLInstantIDPipeline(**parts, controlnet=controlnet)
    for path, module in pipe.unet.named_modules():
        if path.endswith(".attn2"):
            module.processor = IPAttnProcessor(module.to_q.out_features, scale)
    pipe.set_progress_bar_config(disable=True)
    return pipe
