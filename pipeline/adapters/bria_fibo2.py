"""Bria FIBO 2 (Bria AI, 2026), given images to edit: generated latents and references in one sequence.

Two refining blocks see [generated, reference...], the main ones [gist, generated, reference...]. The gist,
tokens made of the words and of what the language model saw of the images, counts as text here; it stands
last, padded, where prompts of a batch have gists of several lengths. Guidance makes calls of its own. The
attention's output is normalised before it is added; contributions are those before that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from i2am.pipeline.adapters.contract import JointSite, Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.joint import JointAdapter

_REFINER, _MAIN = "noise_refiner", "layers"


class BriaFibo2(JointAdapter):
    """``BriaFibo2Pipeline``."""

    name = "bria-fibo-2"
    blocks = (_REFINER, _MAIN)
    attention = "attention"
    pipelines = ("BriaFibo2",)
    lists = True

    def spans(
        self, pipe: Any, arguments: Mapping[str, Any], sites: Sequence[JointSite]
    ) -> Mapping[str, Spans]:
        config = self.config(pipe)
        images = [arguments["hidden_states"], *(arguments.get("context_latents") or ())]
        if len(images) < 2:
            raise self._no_reference(
                "latents of references", "generated ones alone", "give the pipeline image="
            )
        layouts = [
            TokenLayout((x.shape[-2] // config.patch_size, x.shape[-1] // config.patch_size)) for x in images
        ]
        gists = _gists(arguments, config)
        padded = min(gists) < max(gists)
        tokens = sum(layout.tokens for layout in layouts)
        refining = _of_images(layouts, 0, tokens, None)
        length = tokens + max(gists)
        main = (
            _of_images(layouts, 0, length, slice(tokens, length))
            if padded
            else _of_images(layouts, max(gists), length, slice(0, max(gists)))
        )
        return {site.name: refining if f".{_REFINER}." in site.name else main for site in sites}


def _of_images(layouts: list[TokenLayout], start: int, length: int, text: slice | None) -> Spans:
    """Images one after the other from ``start`` on, the generated one first."""
    found = []
    for layout in layouts:
        found.append(Tokens.after(start, layout))
        start += layout.tokens
    return Spans(length, length, found[0], tuple(found[1:]), text)


def _gists(arguments: Mapping[str, Any], config: Any) -> list[int]:
    """How many tokens the model makes of each prompt, by its own rule."""
    from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count

    words, mask = arguments["encoder_hidden_states"], arguments.get("encoder_attention_mask")
    lengths = [words.shape[2]] * words.shape[0] if mask is None else mask.sum(dim=1).tolist()
    found: list[int] = compute_gist_count(
        lengths, min_gist=config.min_num_gist_tokens, max_gist=config.max_num_gist_tokens,
        gist_step=config.gist_step, min_text_len=config.gist_min_text_len,
        max_text_len=config.gist_max_text_len,
    )  # fmt: skip
    return found
