"""The embedded model: a small reference-conditioned inpainting pipeline with weights, and its scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazy import attach

if TYPE_CHECKING:
    from pipeline.embedded.painter import ReferencePainter as ReferencePainter
    from pipeline.embedded.scenes import Scene as Scene
    from pipeline.embedded.scenes import make_scene as make_scene
    from pipeline.embedded.weights import load_pipeline as load_pipeline

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "ReferencePainter": "pipeline.embedded.painter",
        "Scene": "pipeline.embedded.scenes",
        "load_pipeline": "pipeline.embedded.weights",
        "make_scene": "pipeline.embedded.scenes",
    },
)
