"""Bria FIBO Edit (Bria AI, 2026): generated latents and several references in one joint sequence.

Blocks, layout and position ids are those of FLUX.1 Kontext, [plane, row, column] with a plane for each image;
guidance doubles the rows of a call.
"""

from __future__ import annotations

from i2am.pipeline.adapters.flux_kontext import FluxKontext
from i2am.pipeline.adapters.joint import GuidedInOneCall


class BriaFiboEdit(GuidedInOneCall, FluxKontext):
    """``BriaFiboEditPipeline``."""

    name = "bria-fibo-edit"
    pipelines = ("BriaFiboEdit",)
    lists = True
