"""SeeSR (Wu et al., 2024): attention to the representation of a degradation-aware tagger of the input.

``image_attentions`` of the UNet (16) and of the ControlNet (7) attend to 145 tokens: an average pool, then
the tagger's 12 x 12 patches of the whole low-resolution image, also where the latents are cut into tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Site, TokenLayout
from i2am.pipeline.adapters.defaults import Defaults
from i2am.pipeline.adapters.unet import attentions, has_path, projection_site

_IMAGE = r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.image_attentions\.\d+\.transformer_blocks\.\d+\.attn2"


class SeeSR(Defaults):
    """Adapter of SeeSR's own pipeline."""

    name = "seesr"
    tiled = True

    def matches(self, pipe: Any) -> bool:
        """True for a UNet with image attention."""
        return has_path(getattr(pipe, "unet", None), _IMAGE)

    def companions(self, pipe: Any) -> Sequence[nn.Module]:
        """The ControlNet, which attends to the image as well."""
        controlnet = getattr(pipe, "controlnet", None)
        return (controlnet,) if isinstance(controlnet, nn.Module) else ()

    def sites(self, pipe: Any) -> Sequence[Site]:
        """Image attention of the ControlNet, then of the UNet."""
        parts = {"controlnet": self.companions(pipe), "unet": (self.denoiser(pipe),)}
        found = [
            projection_site(f"{name}.{path}", attention, grid)
            for name, modules in parts.items()
            for module in modules
            for path, attention, grid in attentions(module, _IMAGE)
        ]
        if not any(site.name.startswith("unet.") for site in found):
            raise self._none_found(self.denoiser(pipe), "'*.image_attentions.*.transformer_blocks.*.attn2'")
        return found

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """The tagger's pooled token and its square of patches."""
        side = isqrt(tokens - 1)
        return TokenLayout((side, side), prefix=1)

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """The low-resolution image, resized by the pipeline's caller, and the prompt."""
        return {"image": "source", "prompt": "prompt"}
