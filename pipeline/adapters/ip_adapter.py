"""IP-Adapter (Ye et al., 2023) on diffusers' UNets: a softmax of its own over image tokens.

Query: ``attn2.to_q``; key: ``attn2.processor.to_k_ip.{i}`` of the i-th adapter. Base models have 4 tokens,
Plus models the latents of a resampler (16), neither with a place; full models keep CLIP's class token and its
patch grid (257 tokens for ViT-H/14). An adapter of scale 0 is not called by the model and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Site, TokenLayout
from i2am.pipeline.adapters.defaults import Defaults
from i2am.pipeline.adapters.diffusers_unet import ATTN2
from i2am.pipeline.adapters.unet import attentions, has_path, projection_site
from i2am.storage.errors import CaptureError

_TO_K_IP = r".+\.attn2\.processor\.to_k_ip(\.\d+)?"


class IPAdapter(Defaults):
    """Adapter of pipelines with ``load_ip_adapter`` done, SD 1.5 or SDXL, one IP-Adapter or several."""

    name = "ip-adapter"

    def matches(self, pipe: Any) -> bool:
        """True for a UNet with IP-Adapter projections."""
        return has_path(getattr(pipe, "unet", None), _TO_K_IP)

    def sites(self, pipe: Any) -> Sequence[Site]:
        """Each cross-attention once for each IP-Adapter whose scale is not 0."""
        unet = self.denoiser(pipe)
        found, silent = [], 0
        for path, attention, grid in attentions(unet, ATTN2):
            processor = attention.processor
            for source, (key, scale) in enumerate(_adapters(processor)):
                if _is_off(scale):
                    silent += 1
                    continue
                name = f"unet.{path}.processor.to_k_ip.{source}"
                found.append(projection_site(name, attention, grid, key=key, source=source))
        if not found and silent:
            raise CaptureError(
                f"adapter {self.name!r}: no layer to capture",
                expected="an IP-Adapter whose scale is not 0",
                got=f"{silent} layers, all with scale 0, which the model does not call",
                remedy="pipe.set_ip_adapter_scale(1.0)",
            )
        if not found:
            raise self._none_found(unet, "processors of 'attn2' with to_k_ip: pipe.load_ip_adapter(...)")
        return found

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """Tokens without a place, or CLIP's class token and patch grid where the projection keeps them."""
        projections = getattr(self.denoiser(pipe), "encoder_hid_proj", None)
        layers = list(getattr(projections, "image_projection_layers", ()))
        kind = type(layers[site.source]).__name__ if site.source < len(layers) else ""
        if kind != "IPAdapterFullImageProjection":
            return TokenLayout(grid=(0, 0), prefix=tokens)
        side = _clip_grid(pipe) or isqrt(tokens - 1)
        return TokenLayout(grid=(side, side), prefix=1)

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """The reference image and the prompt, and what the pipeline's class takes besides."""
        found = {"ip_adapter_image": "reference", "prompt": "prompt"}
        name = type(pipe).__name__
        if "Img2Img" in name or "Inpaint" in name:
            found["image"] = "source"
        if "Inpaint" in name:
            found["mask_image"] = "mask"
        return found


def _adapters(processor: Any) -> list[tuple[nn.Module, Any]]:
    """Key projection and scale of each IP-Adapter of an attention processor."""
    keys = getattr(processor, "to_k_ip", None)
    if keys is None:
        return []
    if isinstance(keys, nn.Linear):  # the original repository's processor has one
        return [(keys, processor.scale)]
    return list(zip(keys, processor.scale, strict=True))


def _is_off(scale: Any) -> bool:
    return all(each == 0 for each in scale) if isinstance(scale, list) else scale == 0


def _clip_grid(pipe: Any) -> int | None:
    config = getattr(getattr(pipe, "image_encoder", None), "config", None)
    config = getattr(config, "vision_config", config)
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    return size // patch if size and patch else None
