"""FLUX.2 dev and klein (Black Forest Labs, 2025): generated latents and up to ten references in one sequence.

As in FLUX.1 Kontext the sequence of all blocks is [text, generated, reference...], and position ids, here
[image, row, column, layer], tell the images apart. Klein makes a call of its own for true guidance, unless it
is distilled; dev is told its guidance as a number, in one call. Klein KV computes the references' keys at the
first step, in [text, reference..., generated], and keeps them: text and generated tokens alone are queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from i2am.pipeline.adapters.contract import JointSite, Spans
from i2am.pipeline.adapters.flux_kontext import FluxKontext


class Flux2(FluxKontext):
    """``Flux2Pipeline``, ``Flux2KleinPipeline``, its inpainting and kept-keys variants, the modular ones."""

    name = "flux2"
    pipelines = ("Flux2Pipeline", "Flux2Klein", "Flux2Modular")
    lists = True

    def spans(
        self, pipe: Any, arguments: Mapping[str, Any], sites: Sequence[JointSite]
    ) -> Mapping[str, Spans] | None:
        if arguments.get("kv_cache_mode") == "cached":
            return None
        return super().spans(pipe, arguments, sites)

    def sequence(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        """References whose keys are to be kept are queries of a call of their own, which sees them alone."""
        found = super().sequence(pipe, arguments)
        if arguments.get("kv_cache_mode") != "extract":
            return found
        kept = sum(reference.layout.tokens for reference in found.references)
        text = found.keys - kept - found.generated.layout.tokens
        return replace(
            found, queries=found.queries - kept, generated=found.generated.moved(-kept), static_keys=True,
            others=((kept, slice(text, text + kept)),),
        )  # fmt: skip
