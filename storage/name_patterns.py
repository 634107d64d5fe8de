"""Names asked for exactly or by pattern, the same way in a capture and in an analysis."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from i2am.storage.errors import InputError, UnknownName


def matching_names(kind: str, wanted: str | Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return the `known` names that `wanted` asks for, in the order of `known`, each once.

    `wanted` is a name or shell pattern (``*up_blocks*``), or several; None is all. Raises `UnknownName` if
    one matches nothing.
    """
    if wanted is None:
        return list(known)
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InputError(f"{kind}s", expected="names or patterns of names", got=repr(pattern)[:200])
        if not any(matches(name, pattern) for name in known):
            raise UnknownName(kind, pattern, known)
    return [name for name in known if any(matches(name, pattern) for pattern in patterns)]


def matches(name: str, pattern: str) -> bool:
    """Whether a name is the pattern itself, or fits it as a shell pattern."""
    return name == pattern or fnmatchcase(name, pattern)
