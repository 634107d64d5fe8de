"""FLUX.1 with pictures of the subject in its sequence, in their own code: UNO (Wu et al., 2025), and DreamO.

The sequence of all blocks is [text, generated, reference...]. Position ids of DreamO (Mou et al., 2025) have
no number for the picture: each one begins below and to the right of those before. UNO's sampler keeps its
schedule to itself: give ``timesteps=get_schedule(...)[:-1]``, of ``uno.flux.sampling``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import JointSite, Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.joint import JointAdapter, grid_of
from i2am.pipeline.compilation import named_modules, original


class DreamO(JointAdapter):
    """DreamO's repository, without true guidance: its negative call has no reference."""

    name = "dreamo"
    blocks = ("transformer_blocks", "single_transformer_blocks")
    pipelines = ("DreamO",)

    def sequence(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        ids = arguments["img_ids"]
        ids = (ids[0] if ids.ndim == 3 else ids)[:, 1:3]
        columns = ids[:, 1].tolist()
        starts = [0, *((ids[1:, 0] != ids[:-1, 0]).nonzero().flatten() + 1).tolist()]  # of rows of tokens
        rows = zip(starts, [*starts[1:], len(ids)], strict=True)
        pictures = [list(own) for _, own in groupby(rows, key=lambda row: columns[row[0]])]
        return self.side_by_side(
            int(arguments["encoder_hidden_states"].shape[1]),
            [ids[own[0][0] : own[-1][1]] for own in pictures],
        )

    def side_by_side(self, text: int, pictures: Sequence[torch.Tensor]) -> Spans:
        """The generated picture, then the references, by their position ids [row, column]."""
        start, found = text, list[Tokens]()
        for ids in pictures:
            grid = grid_of(ids)
            if grid is None:
                raise self._no_reference(
                    "position ids that fill a rectangle", f"{len(ids)} ids", "use the pipeline's own ids"
                )
            found.append(Tokens.after(start, TokenLayout(grid)))
            start += len(ids)
        if len(found) < 2:
            raise self._no_reference(
                "generated and reference tokens", "generated ones alone", "give the pipeline a reference"
            )
        return Spans(start, start, found[0], tuple(found[1:]), slice(0, text))

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """What a factory's pipeline takes, by convention."""
        return {"image": "reference", "prompt": "prompt"}


class UNO(DreamO):
    """UNO's repository: blocks of the original FLUX code."""

    name = "uno"
    part = "model"
    blocks = ("double_blocks", "single_blocks")
    pipelines = ("UNO",)

    def sites(self, pipe: Any) -> Sequence[JointSite]:
        """A block calls its attention itself."""
        model = self.denoiser(pipe)
        found = [
            JointSite(f"{self.part}.{path}", original(block), *self._output_and_norm(block))
            for path, block in named_modules(model)
            if path.rpartition(".")[0] in self.blocks
        ]
        if not found:
            raise self._no_layer(model, " or ".join(f"'{name}.*'" for name in self.blocks))
        return found

    def _output_and_norm(self, block: Any) -> tuple[nn.Module | None, nn.Module | None]:
        if hasattr(block, "img_attn"):
            return block.img_attn.proj, block.img_norm1
        return getattr(block, "linear2", None), getattr(block, "pre_norm", None)

    def sequence(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        given = arguments.get("ref_img_ids")
        references = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
        pictures = [ids[0, :, 1:3] for ids in (arguments["img_ids"], *references)]
        return self.side_by_side(int(arguments["txt"].shape[1]), pictures)

    def calls(self, pipe: Any) -> tuple[str, ...]:
        return ()

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        """From 1 to 0."""
        return arguments["timesteps"]
