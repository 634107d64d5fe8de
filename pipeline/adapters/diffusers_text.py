"""Text cross-attention of diffusers' Stable Diffusion pipelines, for the DAAM baseline (Tang et al., 2023).

Text tokens have no place; all that the encoder gives (77, padding included) are kept, in order.
InstructPix2Pix (Brooks et al., 2023) has three row blocks: text and image, image alone, neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from i2am.pipeline.adapters.contract import Site
from i2am.pipeline.adapters.defaults import Defaults
from i2am.pipeline.adapters.diffusers_unet import ATTN2
from i2am.pipeline.adapters.unet import attentions, has_path, projection_site

_OTHERS = r".*(\.pixel_attentions|\.image_attentions|\.attn2_plus|\.to_k_ip)(\..*)?"
"""Modules that make a UNet one of another family."""


class DiffusersText(Defaults):
    """Adapter of pipelines with a UNet and a text encoder, and no reference attention of another kind."""

    name = "diffusers-text"

    def matches(self, pipe: Any) -> bool:
        """True where text is the only thing that the UNet attends to."""
        unet = getattr(pipe, "unet", None)
        text = getattr(pipe, "text_encoder", None)
        return text is not None and has_path(unet, ATTN2) and not has_path(unet, _OTHERS)

    def sites(self, pipe: Any) -> Sequence[Site]:
        """The ``attn2`` of every transformer block."""
        unet = self.denoiser(pipe)
        found = [
            projection_site(f"unet.{path}", attention, grid)
            for path, attention, grid in attentions(unet, ATTN2)
            if getattr(attention, "is_cross_attention", False)
        ]
        if not found:
            raise self._none_found(unet, "modules named '*.transformer_blocks.*.attn2' with cross-attention")
        return found

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        """None, [uncond, cond], or InstructPix2Pix's [cond, image, uncond]."""
        known: dict[int, tuple[str, ...]] = {1: ("cond",), 2: ("uncond", "cond")}
        if "Pix2Pix" in type(pipe).__name__:
            known[3] = ("cond", "image", "uncond")
        return self._known_roles(rows_per_sample, known)

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """The prompt, and what the pipeline's class takes besides."""
        name = type(pipe).__name__
        found = {"prompt": "prompt"}
        if "Pix2Pix" in name or "Img2Img" in name or "Inpaint" in name:
            found["image"] = "source"
        if "Inpaint" in name:
            found["mask_image"] = "mask"
        return found
