"""IP-Adapter (Ye et al., 2023) on diffusers' UNets: a softmax of its own over image tokens.

Query: ``attn2.to_q``; key: ``attn2.processor.to_k_ip.{i}`` of the i-th adapter. Base models have 4 tokens,
Plus models the latents of a resampler (16), neither with a place; full models keep CLIP's class token and its
patch grid (257 tokens for ViT-H/14). An adapter of scale 0 is not called by the model and is left out.
AnimateDiff's frames are rows of their own: declare a sample for each. Perturbed-attention guidance adds a
block of rows, whose role is "perturbed".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import isqrt
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Adapter, Site, TokenLayout, patches_per_side
from i2am.pipeline.adapters.unet import ATTN2, attentions, edit_inputs, has_path, projection_site, text_sites
from i2am.storage.errors import CaptureError

TO_K_IP = r".+\.attn2\.processor\.to_k_ip(\.\d+)?"


class IPAdapter(Adapter):
    """Pipelines with ``load_ip_adapter`` done, SD 1.5 or SDXL, one IP-Adapter or several."""

    name = "ip-adapter"

    def matches(self, pipe: Any) -> bool:
        """Not where a second UNet shows the whole reference: IDM-VTON has both."""
        second = isinstance(getattr(pipe, "unet_encoder", None), nn.Module)
        return has_path(getattr(pipe, "unet", None), TO_K_IP) and not of_instantid(pipe) and not second

    def sites(self, pipe: Any) -> Sequence[Site]:
        """Each cross-attention once for each IP-Adapter whose scale is not 0."""
        unet = self.denoiser(pipe)
        found, off = [], 0
        for path, attention, grid in attentions(unet, ATTN2):
            for index, (key, value, scale) in enumerate(_adapters(attention.processor)):
                if all(each == 0 for each in (scale if isinstance(scale, list) else [scale])):
                    off += 1
                    continue
                name = f"unet.{path}.processor.to_k_ip.{index}"
                gain = partial(scale_of, attention, index)
                found.append(
                    projection_site(
                        name, attention, grid, key=key, value=value, reference_index=index, gain=gain
                    )
                )
        if not found and off:
            raise CaptureError(
                f"adapter {self.name!r}: no layer to capture",
                expected="an IP-Adapter whose scale is not 0",
                got=f"{off} layers, all with scale 0, which the model does not call",
                remedy="pipe.set_ip_adapter_scale(1.0)",
            )
        if not found:
            raise self._no_layer(unet, "processors of 'attn2' with to_k_ip: pipe.load_ip_adapter(...)")
        return found

    def text_sites(self, pipe: Any) -> Sequence[Site]:
        """The attention to words beside it, to which what the adapters give is added."""
        return text_sites(self.denoiser(pipe), gain=lambda: 1.0)

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """Tokens without a place, or CLIP's class token and patch grid where the projection keeps them."""
        projections = getattr(self.denoiser(pipe), "encoder_hid_proj", None)
        layers = list(getattr(projections, "image_projection_layers", ()))
        kind = type(layers[site.reference_index]).__name__ if site.reference_index < len(layers) else ""
        if kind != "IPAdapterFullImageProjection":
            return TokenLayout(grid=(0, 0), prefix=tokens)
        encoder = getattr(pipe, "image_encoder", None)
        side = patches_per_side(getattr(encoder, "config", None)) or isqrt(tokens - 1)
        return TokenLayout(grid=(side, side), prefix=1)

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        return {"ip_adapter_image": "reference", "prompt": "prompt", **edit_inputs(pipe)}


def of_instantid(pipe: Any) -> bool:
    """Whether a pipeline is of InstantID's repository, whose ControlNet attends to the image tokens too."""
    return any("InstantID" in parent.__name__ for parent in type(pipe).__mro__)


def _adapters(processor: Any) -> list[tuple[nn.Module, nn.Module, Any]]:
    """Key projection, value projection and scale of each IP-Adapter of an attention processor."""
    keys = getattr(processor, "to_k_ip", None)
    if keys is None:
        return []
    if isinstance(keys, nn.Linear):  # the original repository's processor has one
        return [(keys, processor.to_v_ip, processor.scale)]
    return list(zip(keys, processor.to_v_ip, processor.scale, strict=True))


def scale_of(attention: Any, index: int) -> float | None:
    """The scale of an IP-Adapter now; None if each of its images has one."""
    scale = _adapters(attention.processor)[index][2]
    return None if isinstance(scale, list) else float(scale)
