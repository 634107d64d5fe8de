"""Factories for PASD, SeeSR and SUPIR in their own code: the repository's pipeline, from the user's checkout.

The returned object has the repository's ``unet``, ``controlnet`` and ``scheduler``, or SUPIR's ``model``;
capture finds the rest.
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


def supir(device: str, dtype: str, checkout: str, sign: str = "Q", **options: Any) -> Any:
    """SUPIR; ``options/SUPIR_v0.yaml`` and ``CKPT_PTH.py`` of the checkout name its weights.

    ``sign`` is "Q" for quality or "F" for fidelity, ``options`` more arguments of ``batchify_sample``.
    """
    with inside(checkout):
        from SUPIR.util import PIL2Tensor, Tensor2PIL, create_SUPIR_model

        model = create_SUPIR_model("options/SUPIR_v0.yaml", SUPIR_sign=sign).to(device)
    model.ae_dtype, model.model.dtype = torch.bfloat16, getattr(torch, dtype)
    return _SUPIR(model, PIL2Tensor, Tensor2PIL, options, device)


class _SUPIR:
    """SUPIR's ``test.py`` without a captioner, as a callable: one image in each call."""

    def __init__(self, model: Any, to_tensor: Any, to_image: Any, options: Any, device: str) -> None:
        self.model, self._options, self._device = model, options, device
        self._to_tensor, self._to_image = to_tensor, to_image

    @torch.no_grad()
    def __call__(
        self, image: Any, prompt: str = "", generator: Any = None, num_inference_steps: int = 50,
        guidance_scale: float = 4.0,
    ) -> Any:  # fmt: skip
        pixels, rows, columns = self._to_tensor(image.convert("RGB"))
        found = self.model.batchify_sample(
            pixels[None].to(self._device), [prompt], num_steps=num_inference_steps, cfg_scale=guidance_scale,
            seed=-1 if generator is None else generator.initial_seed(), **self._options,
        )  # fmt: skip
        return SimpleNamespace(images=[self._to_image(found[0], rows, columns)])


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
