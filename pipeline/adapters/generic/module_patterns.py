"""Modules by the patterns of their paths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from i2am.storage.name_patterns import matches, matching_names


def matching_modules(patterns: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The ``paths`` that the patterns name; of modules inside one another a pattern names the outermost.

    Raises UnknownName if a pattern matches nothing.
    """
    known, chosen = matching_names("module", patterns, paths), set[str]()
    for pattern in patterns:
        fits = {path for path in known if matches(path, pattern)}
        chosen |= {path for path in fits if fits.isdisjoint(_holders(path))}
    return [path for path in known if path in chosen]


def _holders(path: str) -> list[str]:
    return list(accumulate(path.split("."), lambda holder, name: f"{holder}.{name}"))[:-1]
