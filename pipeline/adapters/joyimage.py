"""JoyImage Edit and Edit Plus (JD, 2026): generated and reference latents, then text, in one joint sequence.

All 20 double blocks attend over [generated, reference..., text]. Edit has one reference, of the generated
image's size, and guidance makes calls of its own; Edit Plus has several of any size, and guidance doubles the
rows of a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import JointSite, Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.joint import GuidedInOneCall, JointAdapter


class JoyImageEdit(JointAdapter):
    """``JoyImageEditPipeline``."""

    name = "joyimage-edit"
    blocks = ("double_blocks",)
    pipelines = ("JoyImageEditPipeline",)

    def _site(self, name: str, block: nn.Module, attention: nn.Module) -> JointSite:
        return replace(super()._site(name, block, attention), stream_first=True)

    def sequence(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        """The model takes the last of the images first, which is the generated one."""
        shapes, found = self._shapes(pipe, arguments), list[Tokens]()
        if len(shapes) < 2:
            raise self._no_reference(
                "latents of references", "generated ones alone", "give the pipeline an image"
            )
        start = 0
        for frames, rows, columns in shapes:
            found.append(Tokens(slice(start, start + frames * rows * columns), TokenLayout((rows, columns))))
            start += frames * rows * columns
        length = start + int(arguments["encoder_hidden_states"].shape[1])
        return Spans(length, length, found[0], tuple(found[1:]), slice(start, length))

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        return arguments["timestep"]

    def _shapes(self, pipe: Any, arguments: Mapping[str, Any]) -> list[tuple[int, int, int]]:
        """(frames, rows, columns) of each image in tokens, the generated one first."""
        latents, patch = arguments["hidden_states"], self.config(pipe).patch_size
        frames, rows, columns = (size // own for size, own in zip(latents.shape[-3:], patch, strict=True))
        return [(frames, rows, columns)] * (latents.shape[1] if latents.ndim == 6 else 1)


class JoyImageEditPlus(GuidedInOneCall, JoyImageEdit):
    """``JoyImageEditPlusPipeline``."""

    name = "joyimage-edit-plus"
    pipelines = ("JoyImageEditPlusPipeline",)
    lists = True

    def sequence(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        """``hidden_states`` are [row, token, ...], as the keys before the words."""
        found = super().sequence(pipe, arguments)
        places = (tokens.where for tokens in found.references)
        return replace(found, inputs=tuple(where for where in places if isinstance(where, slice)))

    def _shapes(self, pipe: Any, arguments: Mapping[str, Any]) -> list[tuple[int, int, int]]:
        first, *others = ([tuple(shape) for shape in row] for row in arguments["shape_list"])
        if any(own != first for own in others):
            raise self._no_reference(
                "references of the same sizes in all samples of a call",
                "other sizes",
                "capture one sample a call",
            )
        return first

    def inputs(self, pipe: Any) -> Mapping[str, str | Sequence[str]]:
        return {"images": ["source"], "prompt": "prompt"}
