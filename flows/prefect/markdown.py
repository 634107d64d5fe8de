"""Text from outside in the Markdown and tables of Prefect's artifacts: it stands there and does nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from i2am.storage.redaction import redacted
from i2am.storage.terminal_safe import visible

_MARKS = re.compile(r"[!-+.:-@[-`{-~]")
"""ASCII punctuation but comma, hyphen and slash; Markdown and HTML are made of it."""


def plain(text: object) -> str:
    """One line of Markdown that shows ``text`` as it is: punctuation as entities, never structure."""
    line = visible(redacted(" ".join(str(text).split())))
    return _MARKS.sub(lambda mark: f"&#{ord(mark.group())};", line)


def cells(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table artifact, whose cells are plain text already, without characters that do not print."""
    return [
        {key: visible(redacted(value)) if isinstance(value, str) else value for key, value in row.items()}
        for row in rows
    ]
