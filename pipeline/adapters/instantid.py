"""InstantID (Wang et al., 2024): an IP-Adapter of 16 tokens of a face, and a ControlNet that sees them alone.

The UNet's ``attn2.processor.to_k_ip`` and, in place of a prompt, every ``attn2`` of the ControlNet attend to
the latents of a resampler of a face's identity: they have no place. A mask of regions, where there is one,
is laid on what the UNet's part gives, so that it has no contributions then.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Site
from i2am.pipeline.adapters.ip_adapter import TO_K_IP, IPAdapter, of_instantid, scale_of
from i2am.pipeline.adapters.unet import (
    ATTN2,
    attentions,
    controlnet_of,
    edit_inputs,
    has_path,
    projection_site,
)


class InstantID(IPAdapter):
    """The pipelines of InstantID's repository: a face's identity beside the prompt of SDXL."""

    name = "instantid"

    def matches(self, pipe: Any) -> bool:
        return of_instantid(pipe) and has_path(getattr(pipe, "unet", None), TO_K_IP)

    def companions(self, pipe: Any) -> Sequence[nn.Module]:
        return controlnet_of(pipe)

    def sites(self, pipe: Any) -> Sequence[Site]:
        """The ControlNet's, then the UNet's."""
        control = [
            projection_site(f"controlnet.{path}", attention, grid)
            for module in controlnet_of(pipe)
            for path, attention, grid in attentions(module, ATTN2)
        ]
        unet = [replace(site, gain=partial(_gain, site.attention)) for site in super().sites(pipe)]
        return [*control, *unet]

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """A face's embedding and key points are made of the reference by the pipeline's caller."""
        return {"prompt": "prompt", **edit_inputs(pipe)}


def _gain(attention: Any) -> float | None:
    """The scale of the adapter; None under a mask of regions, which the repository keeps in its module."""
    control = getattr(sys.modules[type(attention.processor).__module__], "region_control", None)
    regions = getattr(control, "prompt_image_conditioning", ())
    masked = any(region.get("region_mask") is not None for region in regions)
    return None if masked else scale_of(attention, 0)
