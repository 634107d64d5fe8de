"""The embedded pipeline: paint the object of a reference image into the masked part of a scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from i2am.pipeline.embedded.encoder import ReferenceEncoder

Picture: TypeAlias = Image.Image | NDArray[np.uint8] | NDArray[np.bool_]
Pictures: TypeAlias = Picture | Sequence[Picture]
StepCallback: TypeAlias = Callable[["ReferencePainter", int, torch.Tensor, dict[str, Any]], dict[str, Any]]


FREQUENCIES = (1, 2, 3)
PLACES = 2 + 4 * len(FREQUENCIES)
"""Planes that say where a position lies in a box."""


@dataclass
class PainterOutput(BaseOutput):
    """What :class:`ReferencePainter` returns: ``images``, PIL or uint8 [y, x, 3], one for each input."""

    images: list[Image.Image] | NDArray[np.uint8]


class ReferencePainter(DiffusionPipeline):
    """Reference-conditioned inpainting of small images, in the manner of Paint-by-Example.

    The UNet's input channels are the noisy image and those of :func:`condition_planes`; its cross-attention
    looks at the reference encoder's patch tokens. The scheduler is any of diffusers' that takes a predicted
    sample.
    """

    model_cpu_offload_seq = "reference_encoder->unet"

    def __init__(
        self, unet: UNet2DConditionModel, reference_encoder: ReferenceEncoder, scheduler: DDIMScheduler
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, reference_encoder=reference_encoder, scheduler=scheduler)
        self.fold = round((unet.config.out_channels / 3) ** 0.5)

    @torch.no_grad()
    def __call__(
        self,
        image: Pictures,
        mask_image: Pictures,
        reference_image: Pictures,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.3,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> PainterOutput:
        """Paint one scene, or a batch of them; pixels outside the mask are the scene's own.

        Images are uint8 [y, x, 3] or PIL; the mask, True or above 127 where to paint, is bool or uint8 [y, x]
        or PIL. Guidance above 1 makes [uncond, cond] rows in each denoiser call. With one generator for each
        image, the image does not depend on its batch. ``output_type`` is "pil" or "np" (uint8 [batch, y, x,
        3]). ``callback_on_step_end`` is called as ``callback(pipe, step, timestep, {"latents": ...})``.
        """
        source, hole, reference = self._prepare(image, mask_image, reference_image)
        guided = guidance_scale > 1.0
        tokens = self.reference_encoder(reference)
        condition = condition_planes(source, hole, self.fold)
        if guided:
            tokens = torch.cat([torch.zeros_like(tokens), tokens])
            condition = torch.cat([condition, condition])
        self.scheduler.set_timesteps(num_inference_steps, device=source.device)
        latents = self._noise(source, generator) * self.scheduler.init_noise_sigma
        for step, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            rows = torch.cat([latents, latents]) if guided else latents
            rows = torch.cat([self.scheduler.scale_model_input(rows, timestep), condition], 1)
            prediction = self.unet(rows, timestep, encoder_hidden_states=tokens).sample
            if guided:
                uncond, cond = prediction.chunk(2)
                prediction = uncond + guidance_scale * (cond - uncond)
            latents = self.scheduler.step(prediction, timestep, latents).prev_sample
            if callback_on_step_end is not None:
                kept = callback_on_step_end(self, step, timestep, {"latents": latents})
                latents = kept.get("latents", latents)
        painted = F.pixel_shuffle(latents, self.fold) * hole + source * (1 - hole)
        self.maybe_free_model_hooks()
        pixels = _pixels(painted)
        return PainterOutput(images=pixels if output_type == "np" else [Image.fromarray(p) for p in pixels])

    def _prepare(
        self, image: Pictures, mask_image: Pictures, reference_image: Pictures
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Source, hole and reference [batch, channel, y, x] on the model's device."""
        device, dtype = self._execution_device, self.unet.dtype
        source = self._tensor(image, device, dtype)
        hole = self._mask(mask_image, device, dtype)
        reference = self._tensor(reference_image, device, dtype)
        if not source.shape[0] == hole.shape[0] == reference.shape[0] or source.shape[2:] != hole.shape[2:]:
            raise ValueError(
                "image, mask_image and reference_image must agree: expected equal counts, and one size for "
                f"image and mask, got {tuple(source.shape)}, {tuple(hole.shape)} and "
                f"{tuple(reference.shape)} [batch, channel, y, x]"
            )
        return source, hole, reference

    def _noise(
        self, like: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None
    ) -> torch.Tensor:
        shape = (3 * self.fold**2, like.shape[2] // self.fold, like.shape[3] // self.fold)
        draws = generator if isinstance(generator, list) else [generator] * len(like)
        if len(draws) != len(like):
            raise ValueError(f"generator: expected one for each of {len(like)} images, got {len(draws)}")
        # Drawn on the generator's own device, so that a seed gives the same image on any device.
        noise = [torch.randn(shape, generator=g, device=g.device if g else "cpu") for g in draws]
        return torch.stack([n.to(like.device, like.dtype) for n in noise])

    @staticmethod
    def _tensor(images: Pictures, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        arrays = [np.asarray(Image.fromarray(np.asarray(i)).convert("RGB")) for i in _listed(images)]
        batch = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        return (batch.to(device, torch.float32) / 127.5 - 1).to(dtype)

    @staticmethod
    def _mask(masks: Pictures, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        arrays = [np.asarray(m.convert("L") if isinstance(m, Image.Image) else m) for m in _listed(masks)]
        planes = [a if a.dtype == np.bool_ else a > 127 for a in arrays]
        return torch.from_numpy(np.stack([p.reshape(p.shape[:2]) for p in planes]))[:, None].to(device, dtype)


def condition_planes(source: torch.Tensor, hole: torch.Tensor, fold: int) -> torch.Tensor:
    """What the UNet is told about a scene, [batch, channel, y / fold, x / fold].

    The masked source and the mask, folded, and where each position lies in the hole's box.
    """
    planes = [F.pixel_unshuffle(source * (1 - hole), fold), F.pixel_unshuffle(hole, fold)]
    return torch.cat([*planes, place_in_box(hole, fold)], 1)


def place_in_box(mask: torch.Tensor, edge: int) -> torch.Tensor:
    """Where each cell of EDGE by EDGE pixels lies in the box of ``mask`` [batch, 1, y, x], as PLACES planes.

    The frame of :func:`box_frame`, and its Fourier features (Tancik et al., 2020), inside the frame alone.
    """
    frame = F.avg_pool2d(box_frame(mask), edge)
    waves = [wave(torch.pi * k * frame) for k in FREQUENCIES for wave in (torch.sin, torch.cos)]
    inside = (frame.abs().amax(1, keepdim=True) < 1.5).to(frame.dtype)
    return torch.cat([frame, *(wave * inside for wave in waves)], 1)


def box_frame(hole: torch.Tensor) -> torch.Tensor:
    """Rows and columns relative to the box of ``hole`` [batch, 1, y, x], as [batch, 2, y, x].

    0 at the centre, -1 and 1 at the edges of the box's longer side, at most 2.
    """
    centres, halves, axes = [], [], []
    for axis in (2, 3):
        line = torch.arange(hole.shape[axis], device=hole.device, dtype=hole.dtype)
        inside = hole.amax(5 - axis)[:, 0] > 0  # [batch, y or x]
        first = torch.where(inside, line, line[-1]).amin(1)
        last = torch.where(inside, line, line[0]).amax(1)
        centres.append((first + last) / 2)
        halves.append((last - first).clamp(min=1) / 2)
        axes.append(line)
    half = torch.maximum(*halves)[:, None]
    rows, columns = (
        ((line - centre[:, None]) / half).clamp(-2, 2) for line, centre in zip(axes, centres, strict=True)
    )
    shape = -1, hole.shape[2], hole.shape[3]
    return torch.stack([rows[:, :, None].expand(shape), columns[:, None, :].expand(shape)], 1)


def _listed(images: Pictures) -> list[Picture]:
    return [images] if isinstance(images, (Image.Image, np.ndarray)) else list(images)


def _pixels(images: torch.Tensor) -> NDArray[np.uint8]:
    """[batch, 3, y, x] in [-1, 1] as uint8 [batch, y, x, 3]."""
    levels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    pixels: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).cpu().numpy()
    return pixels
