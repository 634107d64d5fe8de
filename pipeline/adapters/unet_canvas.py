"""UNets whose picture holds its reference: CatVTON, and any with a region that the user names.

CatVTON (Chong et al., 2024) puts the garment's latents below the person's, leaves cross-attention out and
lets self-attention look; under guidance the unconditional rows have zeros in the garment's place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from i2am.pipeline.adapters.canvas import Canvas
from i2am.pipeline.adapters.contract import JointSite, Spans
from i2am.pipeline.adapters.region import Region
from i2am.pipeline.adapters.unet import ATTN1, edit_inputs, has_path, heads_of, level_grid, self_attentions
from i2am.pipeline.compilation import original


class UNetCanvas(Canvas):
    """The self-attention of a diffusers UNet."""

    name = "unet-canvas"

    def matches(self, pipe: Any) -> bool:
        return has_path(getattr(pipe, self.part, None), ATTN1) and not CatVTON().matches(pipe)

    def sites(self, pipe: Any) -> Sequence[JointSite]:
        unet = self.denoiser(pipe)
        if not (found := self_attentions(unet)):
            raise self._no_layer(unet, "modules named '*.transformer_blocks.*.attn1'")
        return found

    def spans(
        self, pipe: Any, arguments: Mapping[str, Any], sites: Sequence[JointSite]
    ) -> Mapping[str, Spans]:
        """Every level has the canvas's own shares; an inpainting UNet's fifth channel is its mask."""
        latents: torch.Tensor = arguments["sample"]
        unet, size = original(self.denoiser(pipe)), (latents.shape[2], latents.shape[3])
        if latents.shape[1] == 9:
            self.check_kept(latents[:, 4].flatten(1), self.split("unet", size, latents.device)[1])
        found = {}
        for site in sites:
            grid = level_grid(unet, site, size)
            generated, reference = self.split(site.name, grid, latents.device)
            tokens = grid[0] * grid[1]
            found[site.name] = Spans(
                tokens, tokens, generated, (reference,),
                before=None, rows=latents.shape[0], heads=heads_of(site),
            )  # fmt: skip
        return found

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        return {"prompt": "prompt", **edit_inputs(pipe)}


class CatVTON(UNetCanvas):
    """CatVTON's repository."""

    name = "catvton"
    region = Region("bottom")

    def matches(self, pipe: Any) -> bool:
        return any(parent.__name__.startswith("CatVTON") for parent in type(pipe).__mro__)

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        return {"image": "source", "condition_image": "reference", "mask": "mask"}
