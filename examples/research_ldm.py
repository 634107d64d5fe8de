"""Factories for CompVis-style repositories: Paint-by-Example, DCI-VTON and StableVITON in their own code.

Each adds the user's checkout to the path, builds the repository's model from its own configuration and
checkpoint, and returns a callable with ``model`` and ``sampler``, which is all that capture needs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image


def paint_by_example(device: str, dtype: str, checkout: str, config: str, checkpoint: str) -> Any:
    """Paint-by-Example: PLMS, [uncond, cond] in one batch."""
    return _Inpainting(_load(checkout, config, checkpoint, device), "plms", device, dtype)


def dci_vton(device: str, dtype: str, checkout: str, config: str, checkpoint: str) -> Any:
    """DCI-VTON: DDIM, no guidance at its default scale 1; starts from the warped garment."""
    return _Inpainting(_load(checkout, config, checkpoint, device), "ddim", device, dtype)


def stableviton(device: str, dtype: str, checkout: str, config: str, checkpoint: str) -> Any:
    """StableVITON: PLMS; guidance, if on, in separate calls."""
    return _StableVITON(_load(checkout, config, checkpoint, device), device, dtype)


def _load(checkout: str, config: str, checkpoint: str, device: str) -> Any:
    root = str(Path(checkout).expanduser().resolve())
    if root not in sys.path:
        sys.path.insert(0, root)
    from ldm.util import instantiate_from_config  # the repository's own
    from omegaconf import OmegaConf

    model = instantiate_from_config(OmegaConf.load(Path(root, config)).model)
    weights = torch.load(Path(root, checkpoint), map_location="cpu", weights_only=True)
    model.load_state_dict(weights.get("state_dict", weights), strict=False)
    return model.to(device).eval()


class _Inpainting:
    """The inference scripts of Paint-by-Example and DCI-VTON as a callable."""

    def __init__(self, model: Any, kind: str, device: str, dtype: str) -> None:
        from ldm.models.diffusion.ddim import DDIMSampler
        from ldm.models.diffusion.plms import PLMSSampler

        self.model, self.device, self.dtype = model, device, getattr(torch, dtype)
        self.sampler = (PLMSSampler if kind == "plms" else DDIMSampler)(model)

    @torch.no_grad()
    def __call__(
        self, image: Any, mask_image: Any, reference_image: Any, warped_image: Any = None,
        generator: Any = None, num_inference_steps: int = 50, guidance_scale: float = 1.0,
    ) -> Any:  # fmt: skip
        with torch.autocast(self.device.split(":")[0], self.dtype, enabled=self.dtype != torch.float32):
            source, kept = _pixels(image).to(self.device), 1 - _mask(mask_image).to(self.device)
            reference = _clip(reference_image).to(self.device)
            cond = self.model.proj_out(self.model.get_learned_conditioning(reference))
            uncond = None
            if guidance_scale != 1:
                uncond = self.model.learnable_vector.repeat(len(source), 1, 1)
            latents = self._encode(source * kept)
            small = torch.nn.functional.interpolate(kept, latents.shape[2:])
            noise = _noise(latents.shape, generator).to(self.device)
            if warped_image is not None:
                start = torch.full((len(source),), self.model.num_timesteps - 1, device=self.device)
                noise = self.model.q_sample(self._encode(_pixels(warped_image).to(self.device)), start, noise)
            found, _ = self.sampler.sample(
                S=num_inference_steps, conditioning=cond, batch_size=len(source), verbose=False,
                shape=list(latents.shape[1:]), unconditional_guidance_scale=guidance_scale,
                unconditional_conditioning=uncond,
                eta=0.0, x_T=noise, test_model_kwargs={"inpaint_image": latents, "inpaint_mask": small},
            )  # fmt: skip
            return SimpleNamespace(images=_images(self.model.decode_first_stage(found)))

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.get_first_stage_encoding(self.model.encode_first_stage(pixels)).detach()


class _StableVITON:
    """StableVITON's ``inference.py`` as a callable."""

    def __init__(self, model: Any, device: str, dtype: str) -> None:
        from cldm.plms_hacked import PLMSSampler

        self.model, self.device, self.dtype = model, device, getattr(torch, dtype)
        self.sampler = PLMSSampler(model)

    @torch.no_grad()
    def __call__(
        self, image: Any, mask_image: Any, reference_image: Any, agnostic_image: Any, densepose_image: Any,
        generator: Any = None, num_inference_steps: int = 50, guidance_scale: float = 1.0,
    ) -> Any:  # fmt: skip
        with torch.autocast(self.device.split(":")[0], self.dtype, enabled=self.dtype != torch.float32):
            batch = {
                "image": _last(_pixels(image)),
                "cloth": _last(_pixels(reference_image)),
                "agn": _last(_pixels(agnostic_image)),
                "agn_mask": _last(1 - _mask(mask_image)),
                "image_densepose": _last(_pixels(densepose_image)),
            }
            batch = {name: value.to(self.device) for name, value in batch.items()}
            latents, cond = self.model.get_input(batch, "image")
            crossed = cond["c_crossattn"][0]
            if crossed.ndim == 4:
                cond["c_crossattn"] = [self.model.get_learned_conditioning(crossed)]
            uncond = {**cond, "c_crossattn": [self.model.get_unconditional_conditioning(len(latents))]}
            self.model.batch = batch
            start = torch.full((1,), self.model.num_timesteps - 1, device=self.device)
            noise = self.model.q_sample(latents, start, _noise(latents.shape, generator).to(self.device))
            found = self.sampler.sample(
                num_inference_steps, len(latents), tuple(latents.shape[1:]), cond, x_T=noise, verbose=False,
                eta=0.0, unconditional_guidance_scale=guidance_scale, unconditional_conditioning=uncond,
            )[0]  # fmt: skip
            return SimpleNamespace(images=_images(self.model.decode_first_stage(found)))


def _list(images: Any) -> list[Image.Image]:
    return images if isinstance(images, list) else [images]


def _pixels(images: Any) -> torch.Tensor:
    """[row, 3, y, x] in -1 to 1."""
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in _list(images)])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


def _mask(images: Any) -> torch.Tensor:
    """[row, 1, y, x], 1 where it is painted."""
    arrays = np.stack([np.asarray(image.convert("L")) for image in _list(images)])
    return (torch.from_numpy(arrays)[:, None] >= 128).float()


def _clip(images: Any) -> torch.Tensor:
    """[row, 3, 224, 224], normalised as CLIP expects."""
    small = [image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC) for image in _list(images)]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    return (_pixels(small) / 2 + 0.5 - mean) / deviation


def _last(batch: torch.Tensor) -> torch.Tensor:
    """Channels last, as StableVITON's loader gives them."""
    return batch.permute(0, 2, 3, 1).contiguous()


def _noise(shape: Any, generator: Any) -> torch.Tensor:
    """Noise of each row from its own generator."""
    if not isinstance(generator, list):
        return torch.randn(shape, generator=generator)
    return torch.stack([torch.randn(shape[1:], generator=each) for each in generator])


def _images(batch: torch.Tensor) -> list[Image.Image]:
    arrays = ((batch.float().clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]
