"""Factories for PASD and SeeSR in their own code: the repository's pipeline, from the user's checkout.

The returned object has the repository's ``unet``, ``controlnet`` and ``scheduler``; capture finds the rest.
"""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import torch
from research_common import autocast, inside, seeded

_TILES = {"latent_tiled_size": 320, "latent_tiled_overlap": 8}
_ADDED = "clean, high-resolution, 8k"


def pasd(
    device: str, dtype: str, checkout: str, base: str, weights: str, light: bool = False, **options: Any
) -> Any:
    """PASD or PASD-light; ``base`` is Stable Diffusion 1.5, ``weights`` the checkpoint's folder."""
    settings = {
        "pretrained_model_path": base,
        "pasd_model_path": weights,
        "use_pasd_light": light,
        "control_type": "realisr",
        "use_personalized_model": False,
        "use_lcm_lora": False,
        "encoder_tiled_size": 1024,
        "decoder_tiled_size": 224,
        "added_noise_level": 900,
        "init_latent_with_noise": False,
        "offset_noise_scale": 0.0,
        **_TILES,
        **options,
    }
    with inside(checkout):
        from test_pasd import load_pasd_pipeline  # the repository's own

        pipe = load_pasd_pipeline(Namespace(**settings), _accelerator(device, dtype), False)

    def call(image: Any, prompt: str, num_inference_steps: int = 20, **more: Any) -> Any:
        # The start is noised to the schedule that these settings give, not to the call's.
        now = Namespace(**settings, num_inference_steps=num_inference_steps)
        text = f"{prompt}, {_ADDED}" if prompt else _ADDED
        return pipe(now, text, image, num_inference_steps=num_inference_steps, **more)

    return _Restoration(pipe, call, device)


def seesr(
    device: str, dtype: str, checkout: str, base: str, weights: str, tagger: str, **options: Any
) -> Any:
    """SeeSR; ``base`` is Stable Diffusion 2, ``weights`` its own, ``tagger`` the fine-tuned RAM.

    The repository reads RAM itself from its ``preset/models``. Tags come from the upscaled image.
    """
    settings = {
        "pretrained_model_path": base, "seesr_model_path": weights, "ram_ft_path": tagger,
        "vae_encoder_tiled_size": 1024, "vae_decoder_tiled_size": 224, **_TILES, **options,
    }  # fmt: skip
    with inside(checkout):
        from test_seesr import get_validation_prompt, load_seesr_pipeline, load_tag_model

        pipe = load_seesr_pipeline(Namespace(**settings), _accelerator(device, dtype), False)
        model = load_tag_model(Namespace(**settings), device)

    def call(image: Any, prompt: str, **more: Any) -> Any:
        now = Namespace(**settings, prompt=prompt)
        tags, tokens = get_validation_prompt(now, image, model, device)
        with autocast(device, dtype):
            return pipe(
                f"{tags} {_ADDED}", image, height=image.height, width=image.width, start_point="lr", args=now,
                ram_encoder_hidden_states=tokens, latent_tiled_size=now.latent_tiled_size,
                latent_tiled_overlap=now.latent_tiled_overlap, **more,
            )  # fmt: skip

    return _Restoration(pipe, call, device)


class _Restoration:
    """One image in each call: the repositories' tiles hold no batch."""

    def __init__(self, pipe: Any, call: Any, device: str) -> None:
        self.unet, self.controlnet, self.scheduler = pipe.unet, pipe.controlnet, pipe.scheduler
        self._call, self._device = call, device

    @torch.no_grad()
    def __call__(self, image: Any, prompt: str = "", generator: Any = None, **arguments: Any) -> Any:
        with seeded(generator, self._device):
            return self._call(image=image, prompt=prompt, generator=generator, **arguments)


def _accelerator(device: str, dtype: str) -> Any:
    """What the repositories' loaders read of an accelerator."""
    precision = {"float16": "fp16", "bfloat16": "bf16"}.get(dtype, "no")
    return SimpleNamespace(device=torch.device(device), mixed_precision=precision)
