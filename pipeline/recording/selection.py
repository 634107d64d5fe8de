"""What to keep of a capture: layers by name or pattern, steps and heads by number or range."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from i2am.pipeline.adapters.contract import AnySite
from i2am.storage.errors import InputError
from i2am.storage.name_patterns import matching_names

Numbers: TypeAlias = int | slice | Iterable[int] | None
"""An index, a slice, or indices (a range, a list); None is all. Negative indices count from the end."""

Layers: TypeAlias = str | Sequence[str] | Numbers
"""Layer names or shell patterns (``*up_blocks*``), or numbers in the model's order; None is all."""


def select_layers(wanted: Layers, sites: Sequence[AnySite]) -> list[AnySite]:
    """The sites that ``wanted`` asks for, in the model's order.

    Raises
    ------
    UnknownName, InputError
        If a name or number is not there, or nothing is left.
    """
    named = {site.name: site for site in sites}
    if wanted is None or isinstance(wanted, (int, slice)):
        return [sites[i] for i in select_numbers("layer", wanted, len(sites))]
    each: list[str | int] = [wanted] if isinstance(wanted, str) else list(wanted)
    names = [name for name in each if isinstance(name, str)]
    numbers = [int(number) for number in each if not isinstance(number, str)]
    chosen = set(matching_names("layer", names, list(named))) if names else set()
    if numbers or not names:
        chosen |= {sites[i].name for i in select_numbers("layer", numbers, len(sites))}
    return [site for site in sites if site.name in chosen]


def select_numbers(kind: str, wanted: Numbers, count: int) -> list[int]:
    """The indices below ``count`` that ``wanted`` asks for, ascending, each once.

    Raises
    ------
    InputError
        If an index is out of range, or nothing is left.
    """
    if wanted is None:
        return list(range(count))
    if isinstance(wanted, slice):
        chosen = list(range(count))[wanted]
    else:
        indices = [wanted] if isinstance(wanted, int) else list(wanted)
        outside = [i for i in indices if not -count <= i < count]
        if outside:
            raise InputError(
                f"{kind} {outside[0]}",
                expected=f"an index from 0 to {count - 1}",
                got=str(outside[0]),
                remedy=f"choose {kind}s that the model has",
            )
        chosen = [i % count for i in indices]
    if not chosen:
        raise InputError(
            f"{kind}s", expected=f"at least one of {count}", got="none", remedy=f"widen the {kind} selection"
        )
    return sorted(set(chosen))
