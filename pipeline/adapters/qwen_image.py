"""Qwen-Image-Edit (Qwen team, 2025): text, generated and reference latents in one joint sequence.

All 60 blocks attend over [text, generated, reference...]; ``img_shapes`` gives the grids. The text holds
further tokens of the reference, seen by the language model; they count as text here. Guidance makes separate
calls, which the pipeline labels itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from i2am.pipeline.adapters.contract import Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.joint import JointAdapter


class QwenImageEdit(JointAdapter):
    """``QwenImageEditPipeline``, its inpainting variant and the one of several images."""

    name = "qwen-image-edit"
    pipelines = ("QwenImageEdit",)

    def takes_lists(self, pipe: Any) -> bool:
        return any(parent.__name__ == "QwenImageEditPlusPipeline" for parent in type(pipe).__mro__)

    def sequence(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        """The first of ``img_shapes`` is the generated image, the others are references."""
        text = int(arguments["encoder_hidden_states"].shape[1])
        shapes = arguments["img_shapes"]
        own = [tuple(shape) for shape in (shapes[0] if isinstance(shapes[0], list) else shapes)]
        if len(own) < 2:
            raise self._no_reference(
                "generated and reference shapes in img_shapes", "one shape", "give the pipeline image="
            )
        starts = [text + sum(map(prod, own[:number])) for number in range(len(own) + 1)]
        found = [
            Tokens.after(start, TokenLayout((rows, columns)))
            for start, (_, rows, columns) in zip(starts, own, strict=False)
        ]
        return Spans(starts[-1], starts[-1], found[0], tuple(found[1:]), slice(0, text))
