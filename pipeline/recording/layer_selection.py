"""The layers that a capture keeps: by name, by pattern, or by number in the model's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from i2am.pipeline.adapters.contract import AnySite
from i2am.storage.index_selection import Indices, listed, select_indices
from i2am.storage.name_patterns import matching_names

Layers: TypeAlias = str | Sequence[str] | Indices
"""Layer names or shell patterns (``*up_blocks*``), or numbers in the model's order; None is all."""


def select_layers(wanted: Layers, sites: Sequence[AnySite]) -> list[AnySite]:
    """The sites that ``wanted`` asks for, in the model's order."""
    each = [wanted] if isinstance(wanted, str) else listed("layer", wanted)
    if each is None or isinstance(each, slice):
        return [sites[i] for i in select_indices("layer", each, len(sites))]
    names = [name for name in each if isinstance(name, str)]
    numbers = [number for number in each if not isinstance(number, str)]
    chosen = set(matching_names("layer", names, [site.name for site in sites])) if names else set()
    if numbers or not names:
        chosen |= {sites[i].name for i in select_indices("layer", numbers, len(sites))}
    return [site for site in sites if site.name in chosen]
