"""Factories for CompVis-style repositories: Paint-by-Example, DCI-VTON, StableVITON, AnyDoor.

Each adds the user's checkout to the path, builds the repository's model from its own configuration and
checkpoint, and returns a callable with ``model`` and ``sampler``, which is all that capture needs. Paths are
read from the checkout. The repositories' samplers need CUDA.
"""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from research_common import autocast, inside, seeded

from i2am.storage.errors import ConfigError


def paint_by_example(
    device: str, dtype: str, checkout: str, config: str, checkpoint: str, trust: bool = False
) -> Any:
    """Paint-by-Example: PLMS, [uncond, cond] in one batch."""
    return _PaintByExample(_load(device, checkout, config, checkpoint, trust), device, dtype)


def dci_vton(
    device: str, dtype: str, checkout: str, config: str, checkpoint: str, trust: bool = False
) -> Any:
    """DCI-VTON: PLMS, no guidance at its default scale 1; starts from the warped garment."""
    return _DCIVTON(_load(device, checkout, config, checkpoint, trust), device, dtype)


def stableviton(
    device: str, dtype: str, checkout: str, config: str, checkpoint: str, trust: bool = False
) -> Any:
    """StableVITON: PLMS; guidance, if on, in separate calls. Its images have 512 rows and 384 columns."""
    return _StableVITON(_load(device, checkout, config, checkpoint, trust), device, dtype)


def anydoor(device: str, dtype: str, checkout: str) -> Any:
    """AnyDoor: DDIM of 50 steps, guidance in separate calls; its ``configs/inference.yaml`` has the paths."""
    with inside(checkout):
        import run_inference  # the repository's own: it loads the model

    return _AnyDoor(run_inference, device)


def _load(device: str, checkout: str, config: str, checkpoint: str, trust: bool) -> Any:
    """The repository's model; ``trust`` lets its checkpoint hold more than weights, which can run code."""
    with inside(checkout):
        from ldm.util import instantiate_from_config  # the repository's own
        from omegaconf import OmegaConf

        model = instantiate_from_config(OmegaConf.load(config).model)
        try:
            weights = torch.load(checkpoint, map_location="cpu", weights_only=not trust)
        except pickle.UnpicklingError as error:
            raise ConfigError(
                f"checkpoint {checkpoint}", expected="weights alone", got=str(error).splitlines()[0][:120],
                remedy="if you trust its origin, add trust: true to pipeline.arguments",
            ) from error  # fmt: skip
    missing = model.load_state_dict(weights.get("state_dict", weights), strict=False).missing_keys
    if lost := [name for name in missing if name.startswith("model.")]:
        raise ConfigError(
            f"checkpoint {checkpoint}", expected=f"all weights of the model in {config}",
            got=f"{len(lost)} of its UNet missing, the first {lost[0]!r}",
            remedy="use the configuration and the checkpoint that belong together",
        )  # fmt: skip
    return model.to(device).eval()


class _PaintByExample:
    """Paint-by-Example's ``scripts/inference.py`` as a callable."""

    def __init__(self, model: Any, device: str, dtype: str) -> None:
        from ldm.models.diffusion.plms import PLMSSampler

        self.model, self.device, self.dtype = model, device, dtype
        self.sampler = PLMSSampler(model)

    @torch.no_grad()
    def __call__(
        self, image: Any, mask_image: Any, reference_image: Any,
        generator: Any = None, num_inference_steps: int = 50, guidance_scale: float = 5.0,
    ) -> Any:  # fmt: skip
        with autocast(self.device, self.dtype), seeded(generator, self.device):
            kept = 1 - _mask(mask_image).to(self.device)
            latents = self._encode(_pixels(image).to(self.device) * kept)
            noise = _noise(latents.shape, generator).to(self.device)
            return self._paint(
                latents, kept, _clip(reference_image), noise, num_inference_steps, guidance_scale
            )

    def _paint(
        self, latents: torch.Tensor, kept: torch.Tensor, reference: torch.Tensor, noise: torch.Tensor,
        steps: int, scale: float,
    ) -> Any:  # fmt: skip
        cond = self.model.proj_out(self.model.get_learned_conditioning(reference.to(self.device)))
        uncond = None if scale == 1 else self.model.learnable_vector.repeat(len(latents), 1, 1)
        small = torch.nn.functional.interpolate(kept, latents.shape[2:], mode="bilinear")
        found, _ = self.sampler.sample(
            S=steps, conditioning=cond, batch_size=len(latents), shape=list(latents.shape[1:]), verbose=False,
            unconditional_guidance_scale=scale, unconditional_conditioning=uncond, eta=0.0, x_T=noise,
            test_model_kwargs={"inpaint_image": latents, "inpaint_mask": small},
        )  # fmt: skip
        return SimpleNamespace(images=_images(self.model.decode_first_stage(found)))

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.get_first_stage_encoding(self.model.encode_first_stage(pixels)).detach()


class _DCIVTON(_PaintByExample):
    """DCI-VTON's ``test.py`` as a callable.

    The warped garment fills the mask and, noised, starts the sampling. The mask is the data set's agnostic
    mask, where the script makes one from the parsing map and shows the hands once more.
    """

    @torch.no_grad()
    def __call__(
        self, image: Any, mask_image: Any, reference_image: Any, reference_mask: Any, warped_image: Any,
        warped_mask: Any, generator: Any = None, num_inference_steps: int = 100, guidance_scale: float = 1.0,
    ) -> Any:  # fmt: skip
        with autocast(self.device, self.dtype), seeded(generator, self.device):
            kept = 1 - _mask(mask_image)
            warped = _pixels(warped_image) * _mask(warped_mask)
            latents = self._encode((warped * (1 - kept) + _pixels(image) * kept).to(self.device))
            last = torch.full((len(latents),), self.model.num_timesteps - 1, device=self.device)
            start = self.model.q_sample(latents, last, _noise(latents.shape, generator).to(self.device))
            garments = [
                _cut_out(*pair) for pair in zip(_list(reference_image), _list(reference_mask), strict=True)
            ]
            return self._paint(
                latents, kept.to(self.device), _clip(garments), start, num_inference_steps, guidance_scale
            )


class _StableVITON:
    """StableVITON's ``inference.py`` as a callable."""

    def __init__(self, model: Any, device: str, dtype: str) -> None:
        from cldm.plms_hacked import PLMSSampler

        self.model, self.device, self.dtype = model, device, dtype
        self.sampler = PLMSSampler(model)

    @torch.no_grad()
    def __call__(
        self, image: Any, mask_image: Any, reference_image: Any, agnostic_image: Any, densepose_image: Any,
        generator: Any = None, num_inference_steps: int = 50, guidance_scale: float = 1.0,
    ) -> Any:  # fmt: skip
        with autocast(self.device, self.dtype), seeded(generator, self.device):
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


class _AnyDoor:
    """AnyDoor's ``inference_single_image`` as a callable: one image in each call."""

    def __init__(self, code: Any, device: str) -> None:
        self.model, self.sampler = code.model, code.ddim_sampler
        self._paint, self._device = code.inference_single_image, device

    @torch.no_grad()
    def __call__(
        self, image: Any, mask_image: Any, reference_image: Any, reference_mask: Any, generator: Any = None,
        guidance_scale: float = 5.0,
    ) -> Any:  # fmt: skip
        pairs = (reference_image, reference_mask), (image, mask_image)
        given = [
            array
            for picture, mask in pairs
            for array in (
                np.asarray(picture.convert("RGB")).copy(),
                _mask(mask)[0, 0].numpy().astype(np.uint8),
            )
        ]
        with seeded(generator, self._device):
            return SimpleNamespace(images=[Image.fromarray(self._paint(*given, guidance_scale))])


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


def _cut_out(garment: Image.Image, mask: Image.Image) -> Image.Image:
    """The garment's box, 15% larger; the repository's loader draws 10 to 20% at random."""
    left, top, right, bottom = mask.convert("L").point(lambda value: 255 * (value >= 128)).getbbox() or (
        0, 0, *garment.size
    )  # fmt: skip
    across, down = round(0.075 * (right - left)), round(0.075 * (bottom - top))
    return garment.crop(
        (max(left - across, 0), max(top - down, 0), min(right + across, garment.width),
         min(bottom + down, garment.height))
    )  # fmt: skip


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
