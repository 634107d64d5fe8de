"""OmniGen (Xiao et al., 2024): words, references, the timestep and generated latents in one sequence.

All 32 layers attend over [words with references among them, timestep, generated], left-padded; words see what
comes before them, an image all of itself, the generated tokens everything. A call has three blocks of rows:
with prompt and references, without both, and with the references alone, where these stand elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from i2am.pipeline.adapters.contract import Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.joint import GuidedInOneCall

_ROLES = ("cond", "uncond", "image")


class OmniGen(GuidedInOneCall):
    """``OmniGenPipeline``."""

    name = "omnigen"
    blocks = ("layers",)
    attention = "self_attn"
    pipelines = ("OmniGenPipeline",)
    lists = True

    def sequence(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        """``input_image_sizes`` says for each row from where to where its references stand."""
        rows, patch = len(arguments["hidden_states"]), self.config(pipe).patch_size
        places = [arguments["input_image_sizes"].get(row, []) for row in range(rows)]
        if not places[0]:
            raise self._no_reference("images in input_images", "none", "give the pipeline input_images=")
        images = iter(arguments["input_img_latents"])
        each = [
            [(start, end, *next(images).shape[-2:]) for start, end in own]
            for own in places[: rows // len(_ROLES) or 1]
        ]
        if any(own != each[0] for own in each):
            raise self._no_reference(
                "references at the same places in all samples of a call",
                "others: prompts or images differ in length", "capture one sample a call",
            )  # fmt: skip
        found = tuple(
            Tokens(slice(start, end), TokenLayout((height // patch, width // patch)))
            for start, end, height, width in each[0]
        )
        words = arguments["input_ids"].shape[1]
        height, width = arguments["hidden_states"].shape[-2:]
        generated = Tokens.after(words + 1, TokenLayout((height // patch, width // patch)))
        length = words + 1 + generated.layout.tokens
        # The last generated token sees all words of its row, and no padding.
        text = arguments["attention_mask"][: len(each), -1, :words].bool().any(0).cpu()
        for reference in found:
            text[reference.where] = False
        return Spans(length, length, generated, found, text.nonzero().flatten(), roles=("cond",))

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        return self._known_roles(rows_per_sample, {len(_ROLES): _ROLES})

    def inputs(self, pipe: Any) -> Mapping[str, str | Sequence[str]]:
        return {"input_images": ["source"], "prompt": "prompt"}
