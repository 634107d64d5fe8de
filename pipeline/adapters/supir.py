"""SUPIR (Yu et al., 2024): ``ZeroCrossAttn`` from the image being generated to the low-resolution one.

``project_modules.*.attn`` attend to the ControlNet's features on the same grid (N x N), which change from
step to step: two in the published SDXL model. Guidance is [uncond, cond] in one batch. Large latents are cut
into tiles, each of which sees its own part of the reference. What is added is multiplied by an argument of
the module's call, so that there are no contributions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from i2am.pipeline.adapters.contract import Site, TokenLayout
from i2am.pipeline.adapters.ldm import ZERO_ATTN, LatentDiffusion, diffusion_model, latent_diffusion
from i2am.pipeline.adapters.unet import has_path, projection_site
from i2am.pipeline.compilation import named_modules
from i2am.pipeline.timesteps import starting_at


class SUPIR(LatentDiffusion):
    """SUPIR's repository: a ``SUPIRModel``."""

    name = "supir"
    tiled = True

    def matches(self, pipe: Any) -> bool:
        return has_path(diffusion_model(pipe), ZERO_ATTN)

    def sites(self, pipe: Any) -> Sequence[Site]:
        """Queries come from the feature map that ``norm1`` takes."""
        unet = self.denoiser(pipe)
        modules = dict(named_modules(unet))
        found = [
            projection_site(path, attention, modules[path.removesuffix("attn") + "norm1"], static_key=False)
            for path, attention in modules.items()
            if re.fullmatch(ZERO_ATTN, path)
        ]
        if not found:
            raise self._no_layer(unet, "'project_modules.*.attn'")
        return found

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """The generated image's own grid."""
        return TokenLayout(grid)

    def shared_reference(self, pipe: Any) -> bool:
        return False

    def schedule(self, pipe: Any, first: float, tolerance: float) -> list[float]:
        """Steps of the discrete model that are nearest to the sampler's noise levels, churn included."""
        model = latent_diffusion(pipe)
        sampler: Any = getattr(model, "sampler", None)
        denoiser: Any = getattr(model, "denoiser", None)
        if "EDM" not in type(sampler).__name__ or not hasattr(denoiser, "sigma_to_idx"):
            return super().schedule(pipe, first, tolerance)
        sigmas = sampler.discretization(sampler.num_steps, device=denoiser.sigmas.device)
        churn = min(getattr(sampler, "s_churn", 0.0) / (len(sigmas) - 1), 2**0.5 - 1)
        steps = []
        for sigma in sigmas[:-1]:
            churned = getattr(sampler, "s_tmin", 0.0) <= sigma <= getattr(sampler, "s_tmax", float("inf"))
            steps.append(float(denoiser.sigma_to_idx(sigma * (1 + churn * churned))))
        got = f"{len(steps)} timesteps of {type(sampler).__name__}"
        return starting_at(steps, first, tolerance, got)

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """What a factory's pipeline takes, by convention."""
        return {"image": "source", "prompt": "prompt"}
