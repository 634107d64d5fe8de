"""Names asked for exactly or by pattern, the same way in a capture and in an analysis."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from i2am.storage.errors import UnknownName


def matching_names(kind: str, wanted: str | Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The names of ``known`` that ``wanted`` asks for, in the order of ``known``.

    Parameters
    ----------
    kind : str
        What they name, for the error: ``layer``.
    wanted : str, sequence of str or None
        Names or shell patterns (``*up_blocks*``); None is all.
    known : sequence of str
        The names that there are.

    Returns
    -------
    list of str
        Each once; empty only if ``wanted`` is.

    Raises
    ------
    UnknownName
        If a name or pattern matches nothing.
    """
    if wanted is None:
        return list(known)
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in known):
            raise UnknownName(kind, pattern, known)
    return [name for name in known if any(matches(name, pattern) for pattern in patterns)]


def matches(name: str, pattern: str) -> bool:
    """Whether a name is the pattern itself, or fits it."""
    return name == pattern or fnmatchcase(name, pattern)
