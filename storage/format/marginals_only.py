"""Runs that were exported with their marginals alone, without the attention itself.

Such a run is the original without query, key, scores and lse of its layers: the same id, the same commit
records, and one more entry, ``kept``, in the root document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from i2am.storage.errors import NoAnswer

MARGINALS = "marginals"
"""Value of the root's entry ``kept`` where the attention is left out."""


NORMS = ("value_norm", "contribution")
"""Arrays of a layer that an export keeps."""


def has_attention(attributes: Mapping[str, Any]) -> bool:
    return attributes.get("kept") != MARGINALS


def is_left_out(path: str) -> bool:
    """Whether an export leaves out the file at a path below the run: attention, but not its tiny norms."""
    return path.startswith("attention/") and path.split("/")[2] not in NORMS


def need_attention(attributes: Mapping[str, Any], path: str, what: str) -> None:
    """Raise `NoAnswer` where something needs the attention and the run has none."""
    if not has_attention(attributes):
        raise NoAnswer(
            f"{path}: {what}",
            expected="a run with its attention",
            got="one that was exported with its marginals alone",
            remedy="ask the run that it was exported from",
        )
