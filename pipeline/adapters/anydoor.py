"""AnyDoor (Chen et al., 2024): cross-attention to DINOv2's class token and patches of the object.

Every ``attn2`` of the UNet (16) and of its ControlNet (7) attends to 257 tokens: the class token, then the
16 x 16 patches of a square image. Guidance makes separate calls, the conditional one first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Site, TokenLayout
from i2am.pipeline.adapters.ldm import (
    UNET_ATTN2,
    LatentDiffusion,
    diffusion_model,
    latent_diffusion,
    sees_patches,
)
from i2am.pipeline.adapters.unet import attentions, has_path, projection_site


class AnyDoor(LatentDiffusion):
    """AnyDoor's repository: a ``ControlLDM`` whose ``cond_stage_model`` is DINOv2."""

    name = "anydoor"

    def matches(self, pipe: Any) -> bool:
        return has_path(diffusion_model(pipe), UNET_ATTN2) and sees_patches(pipe)

    def companions(self, pipe: Any) -> Sequence[nn.Module]:
        control = getattr(latent_diffusion(pipe), "control_model", None)
        return (control,) if isinstance(control, nn.Module) else ()

    def sites(self, pipe: Any) -> Sequence[Site]:
        """The ControlNet's, then the UNet's."""
        control = [
            projection_site(f"control_model.{path}", *modules)
            for module in self.companions(pipe)
            for path, *modules in attentions(module, UNET_ATTN2)
        ]
        return [*control, *super().sites(pipe)]

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """The class token, and a square of patches."""
        side = isqrt(tokens - 1)
        return TokenLayout((side, side), prefix=1)

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """What a factory's pipeline takes, by convention."""
        return {**super().inputs(pipe), "reference_mask": "reference_mask"}

    def calls(self, pipe: Any) -> tuple[str, ...]:
        return ("cond", "uncond")
