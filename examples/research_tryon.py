"""Factories for virtual try-on in its own code, CatVTON and IDM-VTON, and for ICEdit's diptychs on FLUX Fill.

The returned objects hold the repositories' own UNets and schedulers; capture finds the rest.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from research_common import inside, seeded


def catvton(device: str, dtype: str, checkout: str, base: str, weights: str, version: str = "mix") -> Any:
    """CatVTON; ``base`` is Stable Diffusion 1.5 for inpainting, ``weights`` its attention's folder."""
    with inside(checkout):
        from model.pipeline import CatVTONPipeline  # the repository's own

        pipe = CatVTONPipeline(base, weights, version, getattr(torch, dtype), device, skip_safety_check=True)

    def call(image: Any, condition_image: Any, mask: Any, **more: Any) -> list[Any]:
        found: list[Any] = pipe(image, condition_image, mask, height=image.height, width=image.width, **more)
        return found

    return _TryOn(pipe, call, device)


def idm_vton(device: str, dtype: str, checkout: str, weights: str) -> Any:
    """IDM-VTON; ``weights`` is the folder or hub id of the whole pipeline, ``yisol/IDM-VTON``."""
    with inside(checkout):
        from src.tryon_pipeline import StableDiffusionXLInpaintPipeline  # the repository's own
        from src.unet_hacked_garmnet import UNet2DConditionModel as GarmentUNet
        from src.unet_hacked_tryon import UNet2DConditionModel

        kind = {"torch_dtype": getattr(torch, dtype)}
        unets = {
            "unet": UNet2DConditionModel.from_pretrained(weights, subfolder="unet", **kind),
            "unet_encoder": GarmentUNet.from_pretrained(weights, subfolder="unet_encoder", **kind),
        }
        pipe = StableDiffusionXLInpaintPipeline.from_pretrained(weights, **unets, **kind).to(device)
    pipe.unet_encoder.to(device)

    def pixels(picture: Any, size: tuple[int, int]) -> torch.Tensor:
        array = np.asarray(picture.convert("RGB").resize(size), np.float32) / 127.5 - 1
        return torch.from_numpy(array).permute(2, 0, 1)[None].to(device, kind["torch_dtype"])

    def call(image: Any, cloth: Any, mask_image: Any, pose_img: Any, prompt: str, **more: Any) -> list[Any]:
        person, garment = (
            pipe.encode_prompt(text, do_classifier_free_guidance=True)
            for text in (f"model is wearing {prompt}", f"a photo of {prompt}")
        )
        names = (
            "prompt_embeds",
            "negative_prompt_embeds",
            "pooled_prompt_embeds",
            "negative_pooled_prompt_embeds",
        )
        found: list[Any] = pipe(
            **dict(zip(names, person, strict=True)), text_embeds_cloth=garment[0], strength=1.0, image=image,
            cloth=pixels(cloth, image.size), pose_img=pixels(pose_img, image.size), mask_image=mask_image,
            ip_adapter_image=cloth, height=image.height, width=image.width, **more,
        )[0]  # fmt: skip
        return found

    return _TryOn(pipe, call, device)


def icedit(device: str, dtype: str, base: str, lora: str) -> Any:
    """ICEdit: the picture on the left, and on the right the same one, which is painted anew."""
    from diffusers import FluxFillPipeline

    pipe = FluxFillPipeline.from_pretrained(base, torch_dtype=getattr(torch, dtype)).to(device)
    pipe.load_lora_weights(lora)

    def call(image: Any, prompt: str, **more: Any) -> list[Any]:
        width, height = image.size
        canvas, mask = Image.new("RGB", (2 * width, height)), np.zeros((height, 2 * width), np.uint8)
        for left in (0, width):
            canvas.paste(image, (left, 0))
        mask[:, width:] = 255
        words = (
            "A diptych with two side-by-side images of the same scene. On the right, the scene is exactly "
        )
        pair = pipe(
            f"{words}the same as on the left but {prompt}", image=canvas, mask_image=Image.fromarray(mask),
            height=height, width=2 * width, **more,
        ).images[0]  # fmt: skip
        return [pair.crop((width, 0, 2 * width, height))]

    return _TryOn(pipe, call, device)


class _TryOn:
    """One image in each call."""

    def __init__(self, pipe: Any, call: Any, device: str) -> None:
        for part in ("unet", "unet_encoder", "transformer", "scheduler", "noise_scheduler"):
            if hasattr(pipe, part):
                setattr(self, part, getattr(pipe, part))
        self._call, self._device = call, device

    @torch.no_grad()
    def __call__(self, image: Any, generator: Any = None, **arguments: Any) -> Any:
        with seeded(generator, self._device):
            return SimpleNamespace(images=self._call(image=image, generator=generator, **arguments))
