"""Factories for PASD and SeeSR in their own code: the repository's pipeline, from the user's checkout.

The returned object has the repository's ``unet``, ``controlnet`` and ``scheduler``; capture finds the rest.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

_TILES = {"latent_tiled_size": 320, "latent_tiled_overlap": 8}


def pasd(
    device: str, dtype: str, checkout: str, base: str, weights: str, light: bool = False, **options: Any
) -> Any:
    """PASD or PASD-light; ``base`` is Stable Diffusion 1.5, ``weights`` the checkpoint's folder."""
    _add(checkout)
    from test_pasd import load_pasd_pipeline  # the repository's own

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
    pipe = load_pasd_pipeline(Namespace(**settings), _accelerator(device, dtype), False)
    return _Restoration(pipe, lambda **call: pipe(Namespace(**settings), **call))


def seesr(
    device: str, dtype: str, checkout: str, base: str, weights: str, tagger: str, **options: Any
) -> Any:
    """SeeSR; ``base`` is Stable Diffusion 2, ``weights`` its own, ``tagger`` the fine-tuned RAM."""
    _add(checkout)
    from test_seesr import get_validation_prompt, load_seesr_pipeline, load_tag_model  # the repository's own

    settings = Namespace(
        **{"pretrained_model_path": base, "seesr_model_path": weights, "ram_ft_path": tagger, "prompt": "",
           "vae_encoder_tiled_size": 1024, "vae_decoder_tiled_size": 224, **_TILES, **options}
    )  # fmt: skip
    pipe = load_seesr_pipeline(settings, _accelerator(device, dtype), False)
    model = load_tag_model(settings, device)

    def call(image: Any, prompt: str, **more: Any) -> Any:
        tags, tokens = get_validation_prompt(settings, image, model, device)
        return pipe(
            f"{prompt} {tags} clean, high-resolution, 8k", image, height=image.height, width=image.width,
            ram_encoder_hidden_states=tokens, start_point="lr", args=settings,
            latent_tiled_size=settings.latent_tiled_size,
            latent_tiled_overlap=settings.latent_tiled_overlap, **more,
        )  # fmt: skip

    return _Restoration(pipe, call)


class _Restoration:
    """One image in each call: the repositories' tiles hold no batch."""

    def __init__(self, pipe: Any, call: Any) -> None:
        self.unet, self.controlnet, self.scheduler = pipe.unet, pipe.controlnet, pipe.scheduler
        self._call = call

    def __call__(self, image: Any, prompt: str = "", generator: Any = None, **arguments: Any) -> Any:
        return self._call(image=image, prompt=prompt, generator=generator, **arguments)


def _add(checkout: str) -> None:
    root = str(Path(checkout).expanduser().resolve())
    if root not in sys.path:
        sys.path.insert(0, root)


def _accelerator(device: str, dtype: str) -> Any:
    """What the repositories' loaders read of an accelerator."""
    precision = {"float16": "fp16", "bfloat16": "bf16"}.get(dtype, "no")
    return SimpleNamespace(device=torch.device(device), mixed_precision=precision)
