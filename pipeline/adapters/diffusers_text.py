"""Text cross-attention of diffusers' Stable Diffusion pipelines, for the DAAM baseline (Tang et al., 2023).

Text tokens have no place; all that the encoder gives (77, padding included) are kept, in order.
InstructPix2Pix (Brooks et al., 2023) has three row blocks: text and image, image alone, neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from i2am.pipeline.adapters.contract import Site
from i2am.pipeline.adapters.unet import ATTN2, UNetAdapter, edit_inputs, has_path

_OTHERS = r".*(\.pixel_attentions|\.image_attentions|\.attn2_plus|\.to_k_ip)(\..*)?"
"""Modules that make a UNet one of another family."""


class DiffusersText(UNetAdapter):
    """Pipelines with a UNet and a text encoder, and no reference attention of another kind."""

    name = "diffusers-text"
    reads = "text"

    def matches(self, pipe: Any) -> bool:
        unet = getattr(pipe, "unet", None)
        text = getattr(pipe, "text_encoder", None)
        return text is not None and has_path(unet, ATTN2) and not has_path(unet, _OTHERS)

    def sites(self, pipe: Any) -> Sequence[Site]:
        return [replace(site, text=True) for site in super().sites(pipe)]

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        if "Pix2Pix" in type(pipe).__name__ and rows_per_sample == 3:
            return ("cond", "image", "uncond")
        return super().roles(pipe, rows_per_sample)

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        return {"prompt": "prompt", **edit_inputs(pipe)}
