"""FLUX.1 whose picture holds its reference: in-context LoRAs, ICEdit and ACE++ on FLUX Fill.

The sequence of all blocks is [text, canvas]; the user names the side of the canvas that is the reference.
FLUX Fill is given its mask as the last channels of each token: the reference's have to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from i2am.pipeline.adapters.canvas import Canvas
from i2am.pipeline.adapters.contract import Spans
from i2am.pipeline.adapters.joint import JointAdapter, grid_of
from i2am.pipeline.compilation import original


class FluxCanvas(Canvas, JointAdapter):
    """``FluxFillPipeline``, and FLUX.1's pipelines of text, image-to-image and inpainting."""

    name = "flux-canvas"
    blocks = ("transformer_blocks", "single_transformer_blocks")
    pipelines = ("FluxFillPipeline", "FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")

    def sequence(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        text = int(arguments["encoder_hidden_states"].shape[1])
        ids, latents = arguments["img_ids"], arguments["hidden_states"]
        grid = grid_of((ids[0] if ids.ndim == 3 else ids)[:, 1:3])
        if grid is None:
            raise self._no_reference(
                "position ids that fill a rectangle", f"{ids.shape[-2]} ids", "use the pipeline's own ids"
            )
        generated, reference = self.split(self.part, grid, latents.device, text)
        if (painted := painted_tokens(original(self.denoiser(pipe)), latents)) is not None:
            self.check_kept(painted, reference.moved(-text))
        tokens = text + grid[0] * grid[1]
        return Spans(tokens, tokens, generated, (reference,), slice(0, text))

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        name, found = type(pipe).__name__, {"prompt": "prompt"}
        if name != "FluxPipeline":
            found["image"] = "source"
        if "Fill" in name or "Inpaint" in name:
            found["mask_image"] = "mask"
        return found


def painted_tokens(transformer: Any, latents: torch.Tensor) -> torch.Tensor | None:
    """Where FLUX Fill paints, [row, token]: its input is latents, kept latents and mask; None without one."""
    mask = latents[..., 2 * transformer.out_channels :]
    return mask.amax(-1) > 0 if mask.shape[-1] else None
