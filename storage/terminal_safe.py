"""Text from outside, made safe to show: no control character, no escape sequence, no turned direction."""

from __future__ import annotations


def visible(text: str) -> str:
    """Replace every character that does not show, so that no name from a store can steer a terminal.

    Parameters
    ----------
    text : str
        Any text; lone surrogates too.

    Returns
    -------
    str
        Of the same length: control and format characters (escape, bidirectional overrides, line ends),
        surrogates and unassigned code points as U+FFFD.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
