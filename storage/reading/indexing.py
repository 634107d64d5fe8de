"""What part of a run a selection or a path means."""

from __future__ import annotations

from collections.abc import Sequence

from i2am.storage.errors import InputError

Selection = slice | Sequence[int] | None


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


def selected_indices(axis: str, selection: Selection, size: int) -> list[int]:
    """Return what a selection takes of an axis.

    Parameters
    ----------
    axis : str
        Its name, for the message.
    selection : slice or sequence of int, optional
        None for all; negative numbers count from the end.
    size : int
        Length of the axis.

    Returns
    -------
    list of int
        From 0 to `size` - 1.

    Raises
    ------
    InputError
        If an index is out of range.
    """
    if selection is None:
        return list(range(size))
    if isinstance(selection, slice):
        return list(range(size))[selection]
    chosen = []
    for value in selection:
        number = value.__index__() if hasattr(value, "__index__") else size
        if not -size <= number < size:
            raise InputError(axis, expected=f"an index from 0 to {size - 1}", got=repr(value))
        chosen.append(number % size)
    return chosen
