"""Capture: taps and adapters, the capture context, jobs and the embedded model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazy import attach

if TYPE_CHECKING:
    from pipeline.adapters.contract import Adapter as Adapter
    from pipeline.adapters.contract import Site as Site
    from pipeline.adapters.contract import TokenLayout as TokenLayout
    from pipeline.capturing import Capture as Capture
    from pipeline.capturing import capture as capture
    from pipeline.embedded.encoder import ReferenceEncoder as ReferenceEncoder
    from pipeline.probing import Geometry as Geometry
    from pipeline.probing import probe as probe

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Adapter": "pipeline.adapters.contract",
        "Capture": "pipeline.capturing",
        "Geometry": "pipeline.probing",
        "ReferenceEncoder": "pipeline.embedded.encoder",  # where from_pretrained looks for it
        "Site": "pipeline.adapters.contract",
        "TokenLayout": "pipeline.adapters.contract",
        "capture": "pipeline.capturing",
        "probe": "pipeline.probing",
    },
)
