"""An adapter such as a package of a user's own has: one file, the defaults, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from i2am.pipeline.adapters.contract import Site
from i2am.pipeline.adapters.ldm import LatentDiffusion


class Mine(LatentDiffusion):
    """The finest layers alone, and only by name."""

    name = "mine"

    def matches(self, pipe: Any) -> bool:
        return False

    def sites(self, pipe: Any) -> Sequence[Site]:
        return [site for site in super().sites(pipe) if site.name.startswith("output_blocks.11")]
