"""SUPIR's structure: cross-attention from the decoder's features to the ControlNet's, and an EDM sampler."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.standins.ldm import HEADS, WIDTH, CrossAttention, Output, UNetModel, as_batch, as_images

CROSSED = {5: (8, 32, 32), 8: (5, 24, 24)}
"""Output block to the block of the control encoder that it sees, and channels of both."""


class ZeroCrossAttn(nn.Module):
    def __init__(self, context_dim: int, query_dim: int, attention: type[CrossAttention]):
        super().__init__()
        self.attn = attention(query_dim, context_dim, dim_head=query_dim // HEADS)
        self.norm1, self.norm2 = nn.GroupNorm(4, query_dim), nn.GroupNorm(4, context_dim)

    def forward(self, context: torch.Tensor, x: torch.Tensor, control_scale: float = 1) -> torch.Tensor:
        tokens, keys = (part.flatten(2).transpose(1, 2) for part in (self.norm1(x), self.norm2(context)))
        given = self.attn(tokens, keys).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + given * control_scale


class LightGLVUNet(UNetModel):
    """The features of the image are added before each block, and crossed before two upsamplings."""

    def __init__(self, attention: type[CrossAttention]):
        super().__init__(in_channels=4, attention=attention)
        self.project_modules = nn.ModuleList([nn.Conv2d(32, 32, 1)])
        self.project_modules.extend(ZeroCrossAttn(*dims, attention) for _, *dims in CROSSED.values())

    def forward(self, x, timesteps=None, context=None, control=None, control_scale=1, **kwargs):  # type: ignore[no-untyped-def]
        emb, skips, h = self.embed(timesteps), [], x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context) + self.project_modules[0](control[-1])
        for index, block in enumerate(self.output_blocks):
            h = torch.cat([h, skips.pop()], 1)
            if index not in CROSSED:
                h = block(h, emb, context)
                continue
            *layers, upsample = block
            for layer in layers:
                h = layer(h, emb if layer is layers[0] else context)
            crossed = self.project_modules[1 + list(CROSSED).index(index)]
            h = upsample(crossed(control[CROSSED[index][0]], h, control_scale=control_scale))
        return self.out(h)


class GLVControl(UNetModel):
    """The encoder, of the noisy latents with those of the low-resolution image added."""

    def __init__(self, attention: type[CrossAttention]):
        super().__init__(in_channels=4, attention=attention)
        del self.output_blocks, self.out
        self.input_hint_block = nn.Conv2d(4, 16, 3, padding=1)

    def forward(self, x, timesteps, xt, context=None, **kwargs):  # type: ignore[no-untyped-def, override]
        emb, outs, h = self.embed(timesteps), [], xt
        for index, block in enumerate(self.input_blocks):
            h = block(h, emb, context)
            if index == 0:
                h = h + self.input_hint_block(x) * 5
            outs.append(h)
        return [*outs, self.middle_block(h, emb, context)]


class ControlWrapper(nn.Module):
    def __init__(self, attention: type[CrossAttention]):
        super().__init__()
        self.diffusion_model, self.control_model = LightGLVUNet(attention), GLVControl(attention)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, c: dict[str, torch.Tensor], scale: float
    ) -> torch.Tensor:
        control = self.control_model(x=c["control"], timesteps=t, xt=x, context=c["crossattn"])
        return self.diffusion_model(
            x, timesteps=t, context=c["crossattn"], control=control, control_scale=scale
        )


def discretization(count: int, device: Any = "cpu", do_append_zero: bool = True) -> torch.Tensor:
    """Noise levels of some of a thousand steps, falling."""
    alphas = torch.linspace(0.9999, 0.05, 1000)[torch.linspace(999, 1000 / count - 1, count).long()]
    sigmas = ((1 - alphas) / alphas).sqrt()
    return torch.cat([sigmas, sigmas.new_zeros(1)]) if do_append_zero else sigmas


class DiscreteDenoiserWithControl(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sigmas", discretization(1000, do_append_zero=False).flip(0))

    def sigma_to_idx(self, sigma: torch.Tensor) -> torch.Tensor:
        return (sigma - self.sigmas[:, None]).abs().argmin(0).view(sigma.shape)

    def forward(self, network: Any, x: torch.Tensor, sigma: torch.Tensor, c: Any, scale: float) -> Any:
        steps = self.sigma_to_idx(sigma)
        level = self.sigmas[steps][:, None, None, None]
        return x - level * network(x / (level**2 + 1).sqrt(), steps, c, scale)


class RestoreEDMSampler:
    """One call a step, [uncond, cond] in one batch; where there are tiles, one for each."""

    s_tmin, s_tmax = 0.0, float("inf")

    def __init__(self, num_steps: int, scale: float, s_churn: float, tile_size: int | None):
        self.num_steps, self.scale, self.s_churn, self.tile_size = num_steps, scale, s_churn, tile_size
        self.discretization = discretization

    def __call__(self, denoiser: Any, x: torch.Tensor, cond: Any, uc: Any) -> torch.Tensor:
        sigmas = self.discretization(self.num_steps)
        gamma = min(self.s_churn / (len(sigmas) - 1), 2**0.5 - 1)
        for sigma, after in pairwise(sigmas):
            hat = sigma * (gamma + 1.0)
            found = torch.zeros_like(x)
            for columns in self._cuts(x.shape[3]):
                for rows in self._cuts(x.shape[2]):
                    control = cond["control"][:, :, rows, columns]
                    part = x[:, :, rows, columns]
                    found[:, :, rows, columns] = self.denoise(
                        denoiser, part, hat, {**cond, "control": control}, {**uc, "control": control}
                    )
            x = x + (x - found) / hat * (after - hat)
        return x

    def _cuts(self, size: int) -> list[slice]:
        """Tiles overlap by 2; the last one is moved to the edge."""
        if self.tile_size is None:
            return [slice(0, size)]
        starts = range(0, size - 2, self.tile_size - 2)
        return [slice(s, s + self.tile_size) for s in (min(n, size - self.tile_size) for n in starts)]

    def denoise(self, denoiser: Any, x: torch.Tensor, sigma: torch.Tensor, cond: Any, uc: Any) -> Any:
        if self.scale == 1:
            return denoiser(x, sigma.expand(len(x)), cond)
        both = {name: torch.cat([uc[name], cond[name]]) for name in cond}
        found = denoiser(torch.cat([x] * 2), sigma.expand(2 * len(x)), both)
        uncond, found = found.chunk(2)
        return uncond + self.scale * (found - uncond)


class SUPIRModel(nn.Module):
    def __init__(self, attention: type[CrossAttention]):
        super().__init__()
        self.model, self.denoiser = ControlWrapper(attention), DiscreteDenoiserWithControl()

    def batchify_sample(
        self, z: torch.Tensor, noise: torch.Tensor, text: torch.Tensor, num_steps: int, cfg_scale: float,
        s_churn: float, tile_size: int | None,
    ) -> torch.Tensor:  # fmt: skip
        self.sampler = RestoreEDMSampler(num_steps, cfg_scale, s_churn, tile_size)
        cond, uc = ({"crossattn": words, "control": z} for words in (text, torch.zeros_like(text)))
        return self.sampler(lambda x, sigma, c: self.denoiser(self.model, x, sigma, c, 0.9), noise, cond, uc)


class Pipeline:
    """What a user's factory returns."""

    def __init__(self, attention: type[CrossAttention] = CrossAttention):
        torch.manual_seed(0)
        self.model = SUPIRModel(attention).eval()

    @torch.no_grad()
    def __call__(
        self, image: Any, generator: Any = None, num_inference_steps: int = 4, guidance_scale: float = 1.0,
        s_churn: float = 0.0, tile_size: int | None = None,
    ) -> Output:  # fmt: skip
        source = F.avg_pool2d(as_batch(image), 2)
        latents = torch.cat([source, source.mean(1, keepdim=True)], 1)
        noise = torch.randn(latents.shape, generator=generator)
        text = torch.ones(len(source), 3, WIDTH)
        found = self.model.batchify_sample(
            latents, noise, text, num_inference_steps, guidance_scale, s_churn, tile_size
        )
        return Output(as_images(found[:, :3]))
