"""What the commands write: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from storage.errors import I2AMError


def say(line: str) -> None:
    """Write one line of a result to standard output."""
    sys.stdout.write(line + "\n")


def note(line: str) -> None:
    """Write one line about the work, such as progress or an error, to standard error."""
    sys.stderr.write(" ".join(line.split()) + "\n")
    sys.stderr.flush()


def one_line(error: Exception) -> str:
    """Say an error in one line; one that was not raised on purpose is named by its class."""
    text = str(error) if isinstance(error, I2AMError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def emit(document: Mapping[str, Any]) -> None:
    """Write a result for programs: one JSON document on standard output; NaN and infinity become null."""
    say(json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False))


def human_bytes(count: float) -> str:
    """Format a number of bytes with a decimal prefix: 1536 -> ``1.5 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """Write a table to standard output.

    Parameters
    ----------
    columns
        Headings.
    rows
        Cells, turned into text as they are: no markup is read from data.
    right
        Indices of the columns that are set flush right (numbers).
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        grid.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_visible(str(cell))) for cell in row))
    # Piped output keeps its columns: 200 characters hold every table here.
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, highlight=False).print(grid)


def _visible(text: str) -> str:
    """Replace control characters, so that no name from a store can steer the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _plain(value: Any) -> Any:
    """Turn what JSON does not know (numpy scalars, paths, tuples, NaN) into what it knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, (str, int)):
        return value
    return str(value)
