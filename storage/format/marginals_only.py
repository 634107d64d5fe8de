"""Runs that keep a part of what was captured: those exported with their marginals alone have no attention.

Such a run is the original without the shards of its layers: the same id, the same commit records, and one
more entry, ``kept``, in the root document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from i2am.storage.errors import NoAnswer

MARGINALS = "marginals"
"""Value of the root's entry ``kept`` where the attention is left out."""


def has_attention(attributes: Mapping[str, Any]) -> bool:
    """Return whether a run holds the attention that its commit records speak of.

    Parameters
    ----------
    attributes : mapping
        ``attributes["i2am"]`` of its root document.

    Returns
    -------
    bool
        False for a run that was exported with its marginals alone.
    """
    return attributes.get("kept") != MARGINALS


def need_attention(attributes: Mapping[str, Any], path: str, what: str) -> None:
    """Refuse what a run without attention cannot answer.

    Parameters
    ----------
    attributes : mapping
        ``attributes["i2am"]`` of its root document.
    path : str
        Path or URL of the run.
    what : str
        What needs the attention.

    Raises
    ------
    NoAnswer
        If the run was exported with its marginals alone.
    """
    if not has_attention(attributes):
        raise NoAnswer(
            f"{path}: {what}",
            expected="a run with its attention",
            got="one that was exported with its marginals alone",
            remedy="ask the run that it was exported from",
        )
