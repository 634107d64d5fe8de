"""FLUX.2 dev and klein (Black Forest Labs, 2025): generated latents and up to ten references in one sequence.

As in FLUX.1 Kontext the sequence of all blocks is [text, generated, reference...], and position ids, here
[image, row, column, layer], tell the images apart. Klein makes a call of its own for true guidance, unless it
is distilled; dev is told its guidance as a number, in one call.
"""

from __future__ import annotations

from i2am.pipeline.adapters.flux_kontext import FluxKontext


class Flux2(FluxKontext):
    """``Flux2Pipeline``, ``Flux2KleinPipeline`` and its inpainting variant."""

    name = "flux2"
    pipelines = ("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinInpaintPipeline")
