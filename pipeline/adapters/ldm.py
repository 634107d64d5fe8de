"""CompVis-style latent diffusion code: Paint-by-Example (Yang et al., 2023) and DCI-VTON (Gou et al., 2023).

The pipeline is a ``LatentDiffusion``, a sampler that holds one as ``model``, or any callable that has the two
as ``model`` and ``sampler``. One pooled CLIP token is the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Adapter, Site
from i2am.pipeline.adapters.unet import attentions, has_path, projection_site
from i2am.pipeline.timesteps import starting_at

UNET_ATTN2 = r"(input_blocks\.\d+|middle_block|output_blocks\.\d+)\.1\.transformer_blocks\.\d+\.attn2"
WARP_ATTN2 = r"warp_flow_blks\.\d+\.transformer_blocks\.\d+\.attn2"
ZERO_ATTN = r"project_modules\.\d+\.attn"


class LatentDiffusion(Adapter):
    """``ldm`` models of no family of their own."""

    name = "ldm"

    def matches(self, pipe: Any) -> bool:
        found = diffusion_model(pipe)
        others = has_path(found, WARP_ATTN2) or has_path(found, ZERO_ATTN) or sees_patches(pipe)
        return has_path(found, UNET_ATTN2) and not others

    def denoiser(self, pipe: Any) -> nn.Module:
        found = diffusion_model(pipe)
        if found is None:
            raise self._no_layer(nn.Module(), "a LatentDiffusion with model.diffusion_model")
        return found

    def sites(self, pipe: Any) -> Sequence[Site]:
        """The ``attn2`` of every SpatialTransformer."""
        unet = self.denoiser(pipe)
        found = [projection_site(path, *modules) for path, *modules in attentions(unet, UNET_ATTN2)]
        if not found:
            raise self._no_layer(unet, "'input_blocks|middle_block|output_blocks ... attn2'")
        return found

    def schedule(self, pipe: Any, first: float, tolerance: float) -> list[float]:
        """The sampler's steps; the first step of PLMS evaluates the model twice."""
        for sampler in (pipe, getattr(pipe, "sampler", None)):
            if (ascending := getattr(sampler, "ddim_timesteps", None)) is None:
                continue
            steps = [float(t) for t in reversed(list(ascending))]
            if "PLMS" in type(sampler).__name__:
                steps[1:1] = [steps[min(1, len(steps) - 1)]]
            return starting_at(steps, first, tolerance, f"{len(steps)} timesteps of {type(sampler).__name__}")
        return super().schedule(pipe, first, tolerance)

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        return arguments.get("timesteps")

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """What a factory's pipeline takes, by convention."""
        return {"image": "source", "mask_image": "mask", "reference_image": "reference"}


def latent_diffusion(pipe: Any) -> Any:
    """A LatentDiffusion, that of a sampler, or that of a pipeline that holds one; None if there is none."""
    for holder in (pipe, getattr(pipe, "model", None)):
        if isinstance(getattr(getattr(holder, "model", None), "diffusion_model", None), nn.Module):
            return holder
    return None


def diffusion_model(pipe: Any) -> nn.Module | None:
    """The UNet of a `latent_diffusion`."""
    found = latent_diffusion(pipe)
    return None if found is None else found.model.diffusion_model


def sees_patches(pipe: Any) -> bool:
    """Whether the UNet's context is DINOv2's class token and patches, as in AnyDoor."""
    encoder = getattr(latent_diffusion(pipe), "cond_stage_model", None)
    return any("DinoV2" in parent.__name__ for parent in type(encoder).__mro__)
