"""Systems with a second UNet for the reference, whose features join self-attention: IDM-VTON, Leffa, ...

IDM-VTON (Choi et al., 2024) and Leffa (Zhou et al., 2025) append normalised features, OOTDiffusion (Xu et
al., 2024) features before the norm, and MimicBrush (Chen et al., 2024) those of a bank, in the middle and on
the way up. Queries and keys alike are [generated, reference]; what the reference's queries give is dropped.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import Adapter, JointSite, Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.unet import heads_of, level_grid, self_attentions
from i2am.pipeline.compilation import original
from i2am.pipeline.timesteps import read_timestep
from i2am.storage.errors import CaptureError


class ReferenceUNet(Adapter):
    """A UNet that is given the features of another, one for each self-attention, in a list."""

    encoder = "unet_encoder"
    """Attribute of the pipeline that holds the second UNet."""
    features = ""
    """Argument of the first that takes the list."""

    def matches(self, pipe: Any) -> bool:
        unet, encoder = getattr(pipe, self.part, None), getattr(pipe, self.encoder, None)
        if not isinstance(unet, nn.Module) or not isinstance(encoder, nn.Module):
            return False
        return self.features in inspect.signature(original(unet).forward).parameters

    def encoders(self, pipe: Any) -> Sequence[nn.Module]:
        return (getattr(pipe, self.encoder),)

    def sites(self, pipe: Any) -> Sequence[JointSite]:
        unet = self.denoiser(pipe)
        if not (found := self_attentions(unet, self.part)):
            raise self._no_layer(unet, "modules named '*.transformer_blocks.*.attn1'")
        return found

    def spans(
        self, pipe: Any, arguments: Mapping[str, Any], sites: Sequence[JointSite]
    ) -> Mapping[str, Spans] | None:
        """The reference's grid is that of the second UNet's own latents, at the site's level."""
        given = arguments["encoders"][0]
        if given is None:  # its features are kept
            return None
        unet = original(self.denoiser(pipe))
        joined = self.joined(pipe, arguments)
        # Called with a timestep of its own, it is called once, before the first step.
        static = read_timestep(given["timestep"]) != read_timestep(self.timestep(arguments))
        found = {}
        for site in sites:
            grid, own = (level_grid(unet, site, x["sample"].shape[2:]) for x in (arguments, given))
            generated = Tokens.after(0, TokenLayout(grid))
            reference = Tokens.after(generated.layout.tokens, TokenLayout(own))
            if (count := joined[site.name].shape[1]) != reference.layout.tokens:
                raise CaptureError(
                    f"layer {site.name!r}: features of the second UNet",
                    expected=f"{reference.layout.tokens}, as its latents have at this level",
                    got=str(count),
                    remedy="leave the layer out with layers=, or use an adapter of this model",
                )
            total = generated.layout.tokens + count
            found[site.name] = Spans(
                total, total, generated, (reference,), static_keys=static,
                before=None, rows=len(arguments["sample"]), heads=heads_of(site),
            )  # fmt: skip
        return found

    def joined(self, pipe: Any, arguments: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """Features [row, token, width] that join each site."""
        names, features = [site.name for site in self.sites(pipe)], arguments[self.features]
        if len(names) != len(features):
            raise CaptureError(
                f"adapter {self.name!r}: features of the second UNet",
                expected=f"one for each of {len(names)} self-attentions",
                got=str(len(features)),
                remedy="use an adapter of this model",
            )
        return dict(zip(names, features, strict=True))


class IDMVTON(ReferenceUNet):
    """IDM-VTON's repository; its IP-Adapter is captured by name: adapter="ip-adapter"."""

    name = "idm-vton"
    features = "garment_features"

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """What a factory's pipeline takes, by convention, as for all of this module."""
        return {"image": "source", "mask_image": "mask", "cloth": "reference", "pose_img": "densepose"}


class Leffa(ReferenceUNet):
    """Leffa's repository, with and without ``ref_acceleration``."""

    name = "leffa"
    features = "reference_features"

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        return {"src_image": "source", "ref_image": "reference", "mask": "mask", "densepose": "densepose"}


class OOTDiffusion(ReferenceUNet):
    """OOTDiffusion's repository. The garment's UNet is called once; conditional rows come first."""

    name = "ootdiffusion"
    part = "unet_vton"
    encoder = "unet_garm"
    features = "spatial_attn_inputs"

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        return self._known_roles(rows_per_sample, {1: ("cond",), 2: ("cond", "uncond")})

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        return {"image_vton": "agnostic", "image_garm": "reference", "mask": "mask", "image_ori": "source"}


class MimicBrush(ReferenceUNet):
    """MimicBrush's repository: an object that holds the pipeline as ``pipe``, and ``referencenet``.

    A block makes two calls of its attention, with the reference and without it, and adds half of each.
    """

    name = "mimicbrush"
    encoder = "referencenet"

    def matches(self, pipe: Any) -> bool:
        """The pipeline alone too, whose other attention nobody shall take for words."""
        return self._holds_both(pipe) or type(pipe).__name__.startswith("MimicBrush")

    def denoiser(self, pipe: Any) -> nn.Module:
        if not self._holds_both(pipe):
            raise CaptureError(
                f"adapter {self.name!r}: the pipeline",
                expected="an object that holds it as pipe, and the reference's UNet as referencenet",
                got=type(pipe).__name__,
                remedy="give the MimicBrush_RefNet, or an object of your own with both",
            )
        return super().denoiser(pipe.pipe)

    def _holds_both(self, pipe: Any) -> bool:
        unet = getattr(getattr(pipe, "pipe", None), self.part, None)
        return isinstance(unet, nn.Module) and isinstance(getattr(pipe, self.encoder, None), nn.Module)

    def sites(self, pipe: Any) -> Sequence[JointSite]:
        """The middle and the way up, where the bank is read; a site's module is its block."""
        modules = dict(original(self.denoiser(pipe)).named_modules())
        return [
            replace(site, attention=modules[site.name.partition(".")[2].rpartition(".")[0]], gain=lambda: 0.5)
            for site in super().sites(pipe)
            if ".down_blocks." not in site.name
        ]

    def joined(self, pipe: Any, arguments: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        banks: dict[str, Any] = {s.name: getattr(s.attention, "bank", ()) for s in self.sites(pipe)}
        for name, bank in banks.items():
            if len(bank) != 1:
                raise CaptureError(
                    f"layer {name!r}: its bank",
                    expected="the features of one call of the reference's UNet",
                    got=str(len(bank)),
                    remedy="leave the layer out with layers=, or use an adapter of this model",
                )
        return {name: bank[0] for name, bank in banks.items()}

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        """What the unconditional rows take from the reference is dropped: they look at themselves alone."""
        return self._known_roles(rows_per_sample, {2: ("without_reference", "cond")})

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        return {"image": "source", "mask_image": "mask", "pil_image": "reference"}
