"""FLUX.1 Kontext (Black Forest Labs, 2025): generated and reference latents in one joint sequence.

The sequence of all 19 double and 38 single blocks is [text, generated, reference]; position ids, [stream,
row, column], tell the two image streams apart and give their grids. True guidance makes separate calls, the
conditional one first. LongCat-Image-Edit (Meituan, 2025) has the same blocks, layout and calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from i2am.pipeline.adapters.contract import Spans, TokenLayout
from i2am.pipeline.adapters.joint import JointAdapter, grid_of


class FluxKontext(JointAdapter):
    """``FluxKontextPipeline``, its inpainting variant, and ``LongCatImageEditPipeline``."""

    name = "flux-kontext"
    blocks = ("transformer_blocks", "single_transformer_blocks")
    pipelines = ("FluxKontext", "LongCatImageEdit")

    def spans(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        """Generated tokens have the lowest stream in ``img_ids``, those of the reference the next one."""
        text = int(arguments["encoder_hidden_states"].shape[1])
        ids = arguments["img_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        start, found = text, []
        for stream in [int(n) for n in ids[:, 0].unique(sorted=True).tolist()]:
            own = ids[ids[:, 0] == stream]
            grid = grid_of(own)
            if grid is None:
                raise self._no_reference(
                    "position ids that fill a rectangle",
                    f"{len(own)} ids of stream {stream}",
                    "use the pipeline's own ids",
                )
            found.append((start, grid))
            start += len(own)
        if len(found) < 2:
            raise self._no_reference(
                "generated and reference tokens in img_ids",
                "generated ones alone",
                "give the pipeline image=",
            )
        references = tuple((first, TokenLayout(grid)) for first, grid in found[1:])
        return Spans(start, text, found[0][1], references)
