"""VisualCloze (Li et al., 2025): rows of example images, the last with the one to generate, on FLUX Fill.

The sequence of all blocks is [text, row, row, ...]; position ids are [row of images, row, column], and the
mask, the last channels of each token, says which images of the last row are generated. Each row of examples
is a reference, and so are the images beside the generated ones: neighbours share a grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import torch

from i2am.pipeline.adapters.contract import Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.flux_canvas import painted_tokens
from i2am.pipeline.adapters.joint import JointAdapter, grid_of
from i2am.pipeline.compilation import original


class VisualCloze(JointAdapter):
    """``VisualClozeGenerationPipeline``, and ``VisualClozePipeline`` with ``upsampling_strength=0``."""

    name = "visualcloze"
    blocks = ("transformer_blocks", "single_transformer_blocks")
    pipelines = ("VisualCloze",)

    def sequence(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        start = text = int(arguments["encoder_hidden_states"].shape[1])
        ids, latents = arguments["img_ids"], arguments["hidden_states"]
        painted = painted_tokens(original(self.denoiser(pipe)), latents)
        if painted is None or bool((painted != painted[0]).any()):
            got = "no mask" if painted is None else "masks that differ between rows of the batch"
            raise self._no_reference("one mask in the tokens' last channels", got, "one layout a call")
        counts = ids[:, 0].unique_consecutive(return_counts=True)[1].tolist()
        found: dict[bool, list[Tokens]] = {True: [], False: []}
        rows = torch.split(ids[:, 1:3], counts), torch.split(painted[0], counts)
        for own, mask in zip(*rows, strict=True):
            for is_painted, part in self._parts(own, mask):
                found[is_painted].append(part.moved(start))
            start += len(own)
        if len(found[True]) != 1 or not found[False]:
            raise self._no_reference(
                "one image to generate, or several side by side, and others beside them",
                f"{len(found[True])} generated parts and {len(found[False])} others",
                "capture layouts with one target",
            )
        return Spans(start, start, found[True][0], tuple(found[False]), slice(0, text))

    def _parts(self, ids: torch.Tensor, painted: torch.Tensor) -> Iterator[tuple[bool, Tokens]]:
        """Neighbouring images of a row that are all painted, or all kept."""
        grid = grid_of(ids)
        columns = None if grid is None else painted.view(grid)
        if grid is None or columns is None or bool((columns != columns[0]).any()):
            raise self._no_reference(
                "whole images that are painted or kept, in a rectangle of position ids",
                f"{len(ids)} tokens that are not",
                "use the pipeline's own layout",
            )
        runs = [(value, len(list(same))) for value, same in groupby(columns[0].tolist())]
        places = torch.arange(len(ids), device=ids.device).view(grid)
        for (value, width), part in zip(runs, torch.split(places, [n for _, n in runs], 1), strict=True):
            yield value, Tokens(part.flatten(), TokenLayout((grid[0], width)))

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        return {"content_prompt": "prompt"}
