"""What to keep of a capture: layers by name or pattern, steps and heads by number or range."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from storage.errors import InputError

Names: TypeAlias = str | Sequence[str] | None
"""Layer names or shell patterns (``*up_blocks*``); None is all."""

Numbers: TypeAlias = int | slice | Iterable[int] | None
"""An index, a slice, or indices (a range, a list); None is all. Negative indices count from the end."""


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
