"""FLUX.1 Redux (Black Forest Labs, 2024): SigLIP's patches of a reference, appended to FLUX's text tokens.

The joint sequence is [text, 27 x 27 reference tokens, generated]. Matches a pipeline that has the prior
beside the base model (``.prior``); name it for a plain ``FluxPipeline`` that is given the prior's embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Spans, TokenLayout, Tokens, patches_per_side
from i2am.pipeline.adapters.flux_kontext import FluxKontext
from i2am.pipeline.adapters.joint import grid_of

_SIGLIP_SIDE = 27
"""Patches on a side of siglip-so400m-patch14-384, which Redux was trained with."""


class FluxRedux(FluxKontext):
    """FLUX with Redux embeddings."""

    name = "flux-redux"

    def matches(self, pipe: Any) -> bool:
        return type(getattr(pipe, "prior", None)).__name__ == "FluxPriorReduxPipeline"

    def denoiser(self, pipe: Any) -> nn.Module:
        return super().denoiser(getattr(pipe, "base", pipe))

    def sequence(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        """The last tokens of the encoder's part are the reference's."""
        encoded = int(arguments["encoder_hidden_states"].shape[1])
        ids = arguments["img_ids"]
        grid = grid_of((ids[0] if ids.ndim == 3 else ids)[:, 1:3])
        encoder = getattr(getattr(pipe, "prior", None), "image_encoder", None)
        side = patches_per_side(getattr(encoder, "config", None)) or _SIGLIP_SIDE
        if grid is None or encoded <= side * side:
            raise self._no_reference(
                f"text and {side}x{side} reference tokens, then a grid of generated ones",
                f"{encoded} encoder tokens" if grid else "position ids that fill no rectangle",
                "give the base pipeline the prior's prompt_embeds",
            )
        text, length = encoded - side * side, encoded + grid[0] * grid[1]
        generated = Tokens.after(encoded, TokenLayout(grid))
        reference = Tokens.after(text, TokenLayout((side, side)))
        return Spans(length, length, generated, (reference,), slice(0, text))

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        return {"image": "reference"}
