"""PASD (Yang et al., 2024): pixel-aware attention from the image being generated to the low-resolution one.

``up_blocks.*.pixel_attentions.*`` of the UNet, or ``attn2_plus`` of the light model, attend to the
ControlNet's features on the same grid (N x N), which change from step to step. Large latents are cut into
tiles, and each tile sees its own part of the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Site, TokenLayout
from i2am.pipeline.adapters.defaults import Defaults
from i2am.pipeline.adapters.unet import attentions, has_path, projection_site

_PIXEL = (
    r"up_blocks\.\d+\.(pixel_attentions\.\d+\.transformer_blocks\.\d+\.attn2"
    r"|attentions\.\d+\.transformer_blocks\.\d+\.attn2_plus)"
)


class PASD(Defaults):
    """Adapter of PASD's own pipeline, full or light."""

    name = "pasd"
    tiled = True

    def matches(self, pipe: Any) -> bool:
        """True for a UNet with pixel-aware attention."""
        return has_path(getattr(pipe, "unet", None), _PIXEL)

    def companions(self, pipe: Any) -> Sequence[nn.Module]:
        """The ControlNet."""
        controlnet = getattr(pipe, "controlnet", None)
        return (controlnet,) if isinstance(controlnet, nn.Module) else ()

    def sites(self, pipe: Any) -> Sequence[Site]:
        """The pixel-aware attention of every block that has one."""
        unet = self.denoiser(pipe)
        found = [
            projection_site(f"unet.{path}", attention, grid, static_key=False)
            for path, attention, grid in attentions(unet, _PIXEL)
        ]
        if not found:
            raise self._none_found(unet, "'up_blocks.*.pixel_attentions.*.attn2' or '*.attn2_plus'")
        return found

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """The generated image's own grid."""
        return TokenLayout(grid)

    def shared_reference(self, pipe: Any) -> bool:
        """Each tile sees its part."""
        return False

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """The low-resolution image, resized by the pipeline's caller, and the prompt."""
        return {"image": "source", "prompt": "prompt"}
