"""AnyDoor's structure: the UNet and its ControlNet attend to DINOv2's class token and patches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.standins.ldm import (
    WIDTH,
    CrossAttention,
    DDIMSampler,
    LatentDiffusion,
    Output,
    UNetModel,
    as_batch,
    as_images,
)

SIDE = 4
"""Patches on a side."""


class ControlledUnetModel(UNetModel):
    def forward(self, x, timesteps=None, context=None, control=None, only_mid_control=False, **kwargs):  # type: ignore[no-untyped-def]
        emb, skips, h = self.embed(timesteps), [], x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context) + control.pop()
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop() + control.pop()], 1), emb, context)
        return self.out(h)


class ControlNet(UNetModel):
    """The UNet's encoder, on the background with the object's outlines pasted into its hole."""

    def __init__(self, attention: type[CrossAttention] = CrossAttention):
        super().__init__(in_channels=4, attention=attention)
        del self.output_blocks, self.out
        self.input_hint_block = nn.Conv2d(4, 16, 3, padding=1)

    def forward(self, x, hint, timesteps, context, **kwargs):  # type: ignore[no-untyped-def, override]
        emb, outs, h = self.embed(timesteps), [], x
        for index, block in enumerate(self.input_blocks):
            h = block(h, emb, context)
            if index == 0:
                h = h + self.input_hint_block(hint)
            outs.append(h)
        return [*outs, self.middle_block(h, emb, context)]


class FrozenDinoV2Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Linear(3, WIDTH)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = F.adaptive_avg_pool2d(image, SIDE).flatten(2).transpose(1, 2)
        return self.projector(torch.cat([patches.mean(1, keepdim=True), patches], 1)) * 20


class ControlLDM(LatentDiffusion):
    def __init__(self, attention: type[CrossAttention] = CrossAttention):
        super().__init__(ControlledUnetModel(in_channels=4, attention=attention))
        self.control_model = ControlNet(attention)
        self.cond_stage_model = FrozenDinoV2Encoder()

    def apply_model(self, x_noisy: torch.Tensor, t: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:  # type: ignore[override]
        context, hint = torch.cat(cond["c_crossattn"], 1), torch.cat(cond["c_concat"], 1)
        control = self.control_model(x=x_noisy, hint=hint, timesteps=t, context=context)
        return self.model.diffusion_model(x=x_noisy, timesteps=t, context=context, control=control)


class SeparateDDIMSampler(DDIMSampler):
    """Guidance as two calls, the conditional one first."""

    def _noise(
        self, x: torch.Tensor, step: int, cond: Any, unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        t = torch.full((len(x),), step, dtype=torch.long)
        found = self.model.apply_model(x, t, cond)
        if unconditional_conditioning is None or unconditional_guidance_scale == 1.0:
            return found
        uncond = self.model.apply_model(x, t, unconditional_conditioning)
        return uncond + unconditional_guidance_scale * (found - uncond)


class Pipeline:
    """What a user's factory returns."""

    def __init__(self, attention: type[CrossAttention] = CrossAttention):
        torch.manual_seed(0)
        self.model = ControlLDM(attention).eval()
        self.sampler = SeparateDDIMSampler(self.model)

    @torch.no_grad()
    def __call__(
        self, image: Any, mask_image: Any, reference_image: Any, generator: Any = None,
        num_inference_steps: int = 4, guidance_scale: float = 1.0,
    ) -> Output:  # fmt: skip
        source, mask, reference = (as_batch(x) for x in (image, mask_image, reference_image))
        hint = F.avg_pool2d(torch.cat([source * (1 - mask), mask[:, :1]], 1), 2)
        noise = torch.randn(len(source), 4, *hint.shape[2:], generator=generator)
        encode = self.model.cond_stage_model
        cond = {"c_crossattn": [encode(reference)], "c_concat": [hint]}
        empty = {**cond, "c_crossattn": [encode(torch.zeros_like(reference))]}
        found, _ = self.sampler.sample(
            num_inference_steps, len(source), noise.shape[1:], cond, x_T=noise,
            unconditional_guidance_scale=guidance_scale, unconditional_conditioning=empty,
        )  # fmt: skip
        return Output(as_images(found[:, :3]))
