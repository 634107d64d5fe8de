"""Qwen-Image-2.1 (Qwen team, 2026): text, references and generated latents in one block-causal sequence.

The language model's sequence keeps slots for each image, of 2x2 tokens: references stand among the words, the
generated tokens last. Generated tokens see all; words and references see what comes before them, and their
own image, at timestep 0, so that their keys are made at the first step and kept. Guidance makes calls of its
own, which the pipeline labels itself. The flex processor makes one call of all at the first step: refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from math import prod
from typing import Any

import torch

from i2am.pipeline.adapters.contract import Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.joint import JointAdapter

_SLOT = 4
"""Tokens of an image in a slot of the language model's sequence."""


class QwenImage21(JointAdapter):
    """``QwenImage21Pipeline``."""

    name = "qwen-image-2.1"
    pipelines = ("QwenImage21",)
    lists = True

    def sequence(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        """Generated tokens are the only queries of the last call; all samples have the first one's layout."""
        slots, shapes = arguments["img_mask"][0], [tuple(shape) for shape in arguments["img_shapes"][0]]
        if len(shapes) < 2:
            raise self._no_reference(
                "generated and reference shapes in img_shapes", "one shape", "give the pipeline image="
            )
        image = slots.repeat_interleave(torch.where(slots, _SLOT, 1)).cpu()
        places, counts = image.nonzero().flatten(), [prod(shape) for shape in shapes]
        if len(places) != sum(counts):
            raise self._no_reference(
                f"{sum(counts)} image tokens in img_mask, as in img_shapes", str(len(places)),
                "give the pipeline's own prompt embeddings",
            )  # fmt: skip
        *found, generated = (
            Tokens.at(own, TokenLayout((rows, columns)))
            for own, (_, rows, columns) in zip(places.split(counts), shapes, strict=True)
        )
        ends = list(accumulate(counts))
        kept, mask, text = arguments.get("kv_cache_mode"), arguments.get("encoder_hidden_states_mask"), ~image
        if mask is not None:  # padding that no sample has words in
            text[~image] = mask.bool().any(0)[~slots[: mask.shape[1]]].cpu()
        return Spans(
            counts[-1], len(image), Tokens.after(0, generated.layout), tuple(found),
            text=text.nonzero().flatten(), static_keys=kept is not None,
            others=() if kept == "cached" else _segments(image, counts),
            inputs=tuple(map(slice, [0, *ends], ends[:-1])),
        )  # fmt: skip


def _segments(image: torch.Tensor, counts: list[int]) -> tuple[tuple[int, slice], ...]:
    """Runs of words, and images, before the generated one: each sees the keys up to its own end."""
    number: Any = torch.full(image.shape, -1)
    number[image] = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    lengths = number[: -counts[-1]].unique_consecutive(return_counts=True)[1].tolist()
    return tuple((own, slice(0, end)) for own, end in zip(lengths, accumulate(lengths), strict=True))
