"""FLUX.1 Kontext (Black Forest Labs, 2025): generated and reference latents in one joint sequence.

The sequence of all 19 double and 38 single blocks is [text, generated, reference]; position ids, [stream,
row, column], tell the image streams apart and give their grids. True guidance makes separate calls, the
conditional one first. LongCat-Image-Edit (Meituan, 2025) has the same blocks, layout and calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from i2am.pipeline.adapters.contract import Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.flux_ip_adapter import TO_K_IP
from i2am.pipeline.adapters.joint import JointAdapter, grid_of
from i2am.pipeline.adapters.unet import has_path


class FluxKontext(JointAdapter):
    """``FluxKontextPipeline``, its inpainting and modular variants, and ``LongCatImageEditPipeline``."""

    name = "flux-kontext"
    blocks = ("transformer_blocks", "single_transformer_blocks")
    pipelines: tuple[str, ...] = ("FluxKontext", "LongCatImageEdit")

    def matches(self, pipe: Any) -> bool:
        return super().matches(pipe) and not has_path(getattr(pipe, self.part, None), TO_K_IP)

    def sequence(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        """Tokens of one stream stand together in ``img_ids``; the generated ones have the lowest."""
        text = int(arguments["encoder_hidden_states"].shape[1])
        ids = arguments["img_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        start, found = text, list[Tokens]()
        streams, counts = (n.tolist() for n in ids[:, 0].unique_consecutive(return_counts=True))
        for stream, own in zip(streams, ids[:, 1:3].split(counts), strict=True):
            grid = grid_of(own)
            if grid is None:
                raise self._no_reference(
                    "position ids that fill a rectangle",
                    f"{len(own)} ids of stream {stream:g}",
                    "use the pipeline's own ids",
                )
            found.append(Tokens.after(start, TokenLayout(grid)))
            start += len(own)
        if len(found) < 2:
            raise self._no_reference(
                "generated and reference tokens in img_ids",
                "generated ones alone",
                "give the pipeline image=",
            )
        generated = found.pop(streams.index(min(streams)))
        return Spans(start, start, generated, tuple(found), slice(0, text))
