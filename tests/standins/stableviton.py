"""StableVITON's structure: warping blocks in the UNet, a ControlNet for the garment, separate calls."""

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
    PLMSSampler,
    SpatialTransformer,
    UNetModel,
    as_batch,
    as_images,
)


class CustomSpatialTransformer(SpatialTransformer):
    """Keys are the garment's features on the same grid."""


class StableVITON(UNetModel):
    """Nine warping blocks, coarse to fine, each before the output block of its resolution."""

    def __init__(self, attention: type[CrossAttention] = CrossAttention):
        super().__init__(in_channels=13, attention=attention)
        before = [32, 32, 32, 32, 24, 24, 24, 16, 16]
        self.warp_flow_blks = nn.ModuleList(
            CustomSpatialTransformer(channels, keys, attention)
            for channels, keys in zip(before, [32, 32, 24, 24, 24, 16, 16, 16, 16], strict=True)
        )
        self.warp_zero_convs = nn.ModuleList(nn.Conv2d(channels, channels, 1) for channels in before)

    def forward(self, x, timesteps=None, context=None, control=None, only_mid_control=False, **kwargs):  # type: ignore[no-untyped-def]
        emb, skips, h = self.embed(timesteps), [], x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        control = list(control)
        control.pop()
        for block in self.output_blocks[:3]:
            control.pop()
            h = block(torch.cat([h, skips.pop()], 1), emb, context)
        warps = zip(self.output_blocks[3:], self.warp_flow_blks, self.warp_zero_convs, strict=True)
        for block, warp, zero in warps:
            hint = control.pop().flatten(2).transpose(1, 2)
            h = zero(warp(h, hint)) + h
            h = block(torch.cat([h, skips.pop()], 1), emb, context)
        return self.out(h), 0


class NoZeroConvControlNet(UNetModel):
    """The UNet's encoder on the garment; its features change with the step's latents."""

    def __init__(self, attention: type[CrossAttention] = CrossAttention):
        super().__init__(in_channels=13, attention=attention)
        self.cond_first_block = nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, x, hint, timesteps, context, only_mid_control=False, **kwargs):  # type: ignore[no-untyped-def, override]
        emb, outs, h = self.embed(timesteps), [], x
        for index, block in enumerate(self.input_blocks):
            h = block(h, emb, context)
            if index == 0:
                h = h + self.cond_first_block(hint)
            outs.append(h)
        outs.append(self.middle_block(h, emb, context))
        return outs, None


class ControlLDM(LatentDiffusion):
    def __init__(self, attention: type[CrossAttention] = CrossAttention):
        super().__init__(StableVITON(attention))
        self.control_model = NoZeroConvControlNet(attention)

    def apply_model(self, x_noisy: torch.Tensor, t: torch.Tensor, cond: dict[str, Any]) -> Any:  # type: ignore[override]
        text = torch.cat(cond["c_crossattn"], 1)
        x_noisy = torch.cat([x_noisy, cond["first_stage_cond"]], 1)
        hint = torch.cat(cond["c_concat"], 1)
        control, _ = self.control_model(x=x_noisy, hint=hint, timesteps=t, context=text)
        eps = self.model.diffusion_model(x=x_noisy, timesteps=t, context=text, control=control)
        return eps, None


class _SeparateCalls:
    """Guidance as two calls, the conditional one first."""

    model: ControlLDM

    def _noise(
        self, x: torch.Tensor, step: int, cond: Any, unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        t = torch.full((len(x),), step, dtype=torch.long)
        (found, _), _ = self.model.apply_model(x, t, cond)
        if unconditional_conditioning is None or unconditional_guidance_scale == 1.0:
            return found
        (uncond, _), _ = self.model.apply_model(x, t, unconditional_conditioning)
        return uncond + unconditional_guidance_scale * (found - uncond)


class SeparateDDIMSampler(_SeparateCalls, DDIMSampler):
    pass


class SeparatePLMSSampler(_SeparateCalls, PLMSSampler):
    pass


class Pipeline:
    """What a user's factory returns."""

    def __init__(self, sampler: Any = SeparatePLMSSampler, attention: type[CrossAttention] = CrossAttention):
        torch.manual_seed(0)
        self.model = ControlLDM(attention).eval()
        self.sampler = sampler(self.model)
        self.encode = nn.Linear(3, WIDTH)

    @torch.no_grad()
    def __call__(
        self, image: Any, mask_image: Any, reference_image: Any, generator: Any = None,
        num_inference_steps: int = 4, guidance_scale: float = 1.0,
    ) -> Output:  # fmt: skip
        source, mask, cloth = (F.avg_pool2d(as_batch(x), 2) for x in (image, mask_image, reference_image))
        first = torch.cat([source * (1 - mask), mask, source], 1)  # agnostic, its mask, dense pose
        noise = torch.randn(len(source), 4, *source.shape[2:], generator=generator)
        cond = {
            "c_crossattn": [self.encode(cloth.mean((2, 3)))[:, None]],
            "c_concat": [cloth * 4],
            "first_stage_cond": first,
        }
        empty = {**cond, "c_crossattn": [torch.zeros(len(source), 1, WIDTH)]}
        found, _ = self.sampler.sample(
            num_inference_steps, len(source), noise.shape[1:], cond, x_T=noise,
            unconditional_guidance_scale=guidance_scale, unconditional_conditioning=empty,
        )  # fmt: skip
        return Output(as_images(found[:, :3]))
