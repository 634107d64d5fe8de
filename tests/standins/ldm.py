"""CompVis-style latent diffusion, as Paint-by-Example and DCI-VTON use it: names and call patterns, tiny."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

HEADS, WIDTH = 4, 24
CHANNELS = {1: 16, 2: 16, 4: 24, 5: 24, 7: 32, 8: 32}
"""Channels of the input blocks that hold a transformer."""


class CrossAttention(nn.Module):
    """Einsum and softmax."""

    def __init__(self, query_dim: int, context_dim: int | None = None, heads: int = HEADS, dim_head: int = 4):
        super().__init__()
        inner = heads * dim_head
        self.scale, self.heads = dim_head**-0.5, heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Dropout(0.0))

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        context = x if context is None else context
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        similarity = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        return torch.einsum("bhij,bhjd->bhid", similarity.softmax(-1), v)


class MemoryEfficientCrossAttention(CrossAttention):
    """The kernel brings its own scale; the module knows ``dim_head`` instead."""

    def __init__(self, query_dim: int, context_dim: int | None = None, heads: int = HEADS, dim_head: int = 4):
        super().__init__(query_dim, context_dim, heads, dim_head)
        del self.scale
        self.dim_head = dim_head

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class BasicTransformerBlock(nn.Module):
    def __init__(self, dim: int, context_dim: int, attention: type[CrossAttention]):
        super().__init__()
        self.attn1 = attention(dim, dim_head=dim // HEADS)
        self.attn2 = attention(dim, context_dim, dim_head=dim // HEADS)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = self.attn1(self.norm1(x)) + x
        return self.attn2(self.norm2(x), context=context) + x


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, context_dim: int, attention: type[CrossAttention]):
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(channels, context_dim, attention)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        rows, columns = x.shape[2:]
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return self.proj_out(tokens.transpose(1, 2).unflatten(2, (rows, columns))) + x


class ResBlock(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv, self.emb = nn.Conv2d(before, after, 3, padding=1), nn.Linear(8, after)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        return F.silu(self.conv(x) + self.emb(emb)[..., None, None])


class TimestepEmbedSequential(nn.Sequential):
    def forward(self, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            else:
                x = layer(x, context) if isinstance(layer, SpatialTransformer) else layer(x)
        return x


class UNetModel(nn.Module):
    """Transformers at input blocks 1, 2, 4, 5, 7, 8, in the middle, and at output blocks 3 to 11."""

    def __init__(self, in_channels: int = 9, attention: type[CrossAttention] = CrossAttention):
        super().__init__()

        def transformer(channels: int) -> SpatialTransformer:
            return SpatialTransformer(channels, WIDTH, attention)

        blocks, width, widths = [TimestepEmbedSequential(nn.Conv2d(in_channels, 16, 3, padding=1))], 16, [16]
        for index in range(1, 12):
            if index in (3, 6, 9):
                block = TimestepEmbedSequential(nn.Conv2d(width, width, 3, stride=2, padding=1))
            else:
                after = CHANNELS.get(index, width)
                layers = [ResBlock(width, after), *([transformer(after)] if index in CHANNELS else [])]
                block, width = TimestepEmbedSequential(*layers), after
            blocks.append(block)
            widths.append(width)
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = TimestepEmbedSequential(
            ResBlock(width, width), transformer(width), ResBlock(width, width)
        )
        outs = []
        for index in range(12):
            after = (32, 32, 24, 16)[index // 3]
            layers = [ResBlock(width + widths.pop(), after), *([transformer(after)] if index > 2 else [])]
            if index in (2, 5, 8):
                layers.append(nn.Upsample(scale_factor=2))
            outs.append(TimestepEmbedSequential(*layers))
            width = after
        self.output_blocks = nn.ModuleList(outs)
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def embed(self, timesteps: torch.Tensor) -> torch.Tensor:
        angles = timesteps[:, None].float() / 1000 * torch.arange(1, 5)
        return torch.cat([angles.sin(), angles.cos()], 1)

    def forward(self, x, timesteps=None, context=None, y=None, **kwargs):  # type: ignore[no-untyped-def]
        emb, skips, h = self.embed(timesteps), [], x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], 1), emb, context)
        return self.out(h)


class DiffusionWrapper(nn.Module):
    def __init__(self, diffusion_model: nn.Module):
        super().__init__()
        self.diffusion_model = diffusion_model

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.diffusion_model(x, t, context=context)


class LatentDiffusion(nn.Module):
    num_timesteps = 1000

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.model = DiffusionWrapper(unet)
        self.alphas_cumprod = torch.linspace(0.999, 0.01, self.num_timesteps)

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return self.model(x, t, cond)


class DDIMSampler:
    """Guidance as [uncond, cond] in one batch."""

    def __init__(self, model: Any):
        self.model = model

    def make_schedule(self, steps: int) -> None:
        every = self.model.num_timesteps // steps
        self.ddim_timesteps = np.arange(0, self.model.num_timesteps, every)[:steps] + 1

    def sample(
        self, S: int, batch_size: int, shape: Any, conditioning: Any, x_T: torch.Tensor, **kwargs: Any
    ) -> Any:
        self.make_schedule(S)
        self._old: list[torch.Tensor] = []
        steps = np.flip(self.ddim_timesteps)
        for index, step in enumerate(steps):
            after = steps[min(index + 1, len(steps) - 1)]
            x_T = self.step(x_T, int(step), int(after), conditioning, **kwargs)
        return x_T, {}

    def step(self, x: torch.Tensor, step: int, after: int, cond: Any, **kwargs: Any) -> torch.Tensor:
        return self._move(x, self._noise(x, step, cond, **kwargs), step, after)

    def _move(self, x: torch.Tensor, noise: torch.Tensor, step: int, after: int) -> torch.Tensor:
        now, then = (self.model.alphas_cumprod[n] for n in (step, after))
        clean = (x - (1 - now).sqrt() * noise) / now.sqrt()
        return then.sqrt() * clean + (1 - then).sqrt() * noise

    def _noise(
        self, x: torch.Tensor, step: int, cond: Any, extra: Any = None,
        unconditional_guidance_scale: float = 1.0, unconditional_conditioning: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        t = torch.full((len(x),), step, dtype=torch.long)
        x = torch.cat([x, extra], 1)
        if unconditional_conditioning is None or unconditional_guidance_scale == 1.0:
            return self.model.apply_model(x, t, cond)
        both = torch.cat([unconditional_conditioning, cond])
        uncond, found = self.model.apply_model(torch.cat([x] * 2), torch.cat([t] * 2), both).chunk(2)
        return uncond + unconditional_guidance_scale * (found - uncond)


class PLMSSampler(DDIMSampler):
    """The first step evaluates the model twice."""

    def step(self, x: torch.Tensor, step: int, after: int, cond: Any, **kwargs: Any) -> torch.Tensor:
        noise = self._noise(x, step, cond, **kwargs)
        if not self._old:
            mixed = (noise + self._noise(self._move(x, noise, step, after), after, cond, **kwargs)) / 2
        else:
            mixed = (3 * noise - self._old[-1]) / 2
        self._old.append(noise)
        return self._move(x, mixed, step, after)


@dataclass
class Output:
    images: list[Image.Image]


class Pipeline:
    """What a user's factory returns: a callable with ``model`` and ``sampler``."""

    def __init__(
        self, sampler: type[DDIMSampler] = DDIMSampler, attention: type[CrossAttention] = CrossAttention
    ):
        torch.manual_seed(0)
        self.model = LatentDiffusion(UNetModel(attention=attention)).eval()
        self.sampler = sampler(self.model)
        self.encode = nn.Linear(3, WIDTH)

    @torch.no_grad()
    def __call__(
        self, image: Any, mask_image: Any, reference_image: Any, generator: Any = None,
        num_inference_steps: int = 4, guidance_scale: float = 1.0,
    ) -> Output:  # fmt: skip
        source, mask, reference = (as_batch(x) for x in (image, mask_image, reference_image))
        latents = F.avg_pool2d(source, 2)
        holes = F.avg_pool2d(mask.mean(1, keepdim=True), 2)
        extra = torch.cat([latents.mean(1, keepdim=True).expand(-1, 4, -1, -1) * (1 - holes), holes], 1)
        cond = self.encode(reference.mean((2, 3)))[:, None] * 20
        noise = torch.randn(len(source), 4, *latents.shape[2:], generator=generator)
        found, _ = self.sampler.sample(
            num_inference_steps, len(source), noise.shape[1:], cond, x_T=noise, extra=extra,
            unconditional_guidance_scale=guidance_scale, unconditional_conditioning=torch.zeros_like(cond),
        )  # fmt: skip
        return Output(as_images(found[:, :3]))


def as_batch(images: Any) -> torch.Tensor:
    """PIL images to [row, channel, y, x] in 0 to 1."""
    arrays = [np.array(im.convert("RGB")) for im in (images if isinstance(images, list) else [images])]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def as_images(batch: torch.Tensor) -> list[Image.Image]:
    """Any [row, 3, y, x] to PIL images."""
    arrays = (torch.sigmoid(batch).permute(0, 2, 3, 1) * 255).byte().numpy()
    return [Image.fromarray(array) for array in arrays]
