"""The side of a generated picture that is its reference, where both stand on one canvas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from i2am.storage.errors import InputError

Side: TypeAlias = Literal["left", "right", "top", "bottom"]
RegionLike: TypeAlias = Side | Mapping[Side, float]
"""A side, for half of the canvas, or a side and its share of the canvas: ``{"left": 0.4}``."""


@dataclass(frozen=True, slots=True)
class Region:
    """A share of the canvas, from one of its edges on; all else is generated."""

    side: Side
    share: float = 0.5

    @classmethod
    def read(cls, value: Any) -> Region:
        """From what a user gives."""
        items = list(value.items()) if isinstance(value, Mapping) else [(value, 0.5)]
        side, share = items[0] if len(items) == 1 else (None, None)
        for known in get_args(Side):
            if side == known and isinstance(share, float) and 0 < share < 1:
                return cls(known, share)
        raise InputError(
            "reference_region",
            expected=f"{', '.join(get_args(Side))}, for half of the canvas; or one with its share between 0 "
            "and 1: {'left': 0.4}",
            got=repr(value),
        )

    def to_json(self) -> dict[str, float]:
        return {self.side: self.share}
