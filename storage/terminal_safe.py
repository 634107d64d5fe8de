"""Text from outside, made safe to show in a terminal."""

from __future__ import annotations


def visible(text: str) -> str:
    """Replace control and format characters, surrogates and unassigned code points by U+FFFD, one by one."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
