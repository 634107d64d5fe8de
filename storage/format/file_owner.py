"""What a file of the store belongs to."""

from __future__ import annotations


def layer_of(path: str) -> str | None:
    """Return what a file of the store belongs to.

    Parameters
    ----------
    path : str
        Below the run.

    Returns
    -------
    str or None
        The layer's name, ``images/<name>``, or None.
    """
    parts = path.split("/")
    if len(parts) < 3:
        return None
    return parts[1] if parts[0] == "attention" else f"images/{parts[1]}" if parts[0] == "images" else None
