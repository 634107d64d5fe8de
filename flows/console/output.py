"""What the commands write: results on standard output, progress and errors on standard error.

Names, attributes and error texts may come from a store or a data set that somebody else made. None of their
characters reaches the terminal that does more than stand there: no control, escape or bidirectional one.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from i2am.storage.errors import I2AMError
from i2am.storage.human_bytes import human_bytes as human_bytes
from i2am.storage.terminal_safe import visible


def say(line: str) -> None:
    """Write one line of a result to standard output."""
    sys.stdout.write(visible(line) + "\n")


def note(line: str) -> None:
    """Write one line about the work, such as progress or an error, to standard error."""
    sys.stderr.write(visible(" ".join(line.split())) + "\n")
    sys.stderr.flush()


def defect() -> None:
    """Write the traceback of the exception that is being handled to standard error."""
    for line in traceback.format_exc().splitlines():
        sys.stderr.write(visible(line) + "\n")


def one_line(error: Exception) -> str:
    """Say an error in one line; one that was not raised on purpose is named by its class."""
    text = str(error) if isinstance(error, I2AMError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def emit(document: Mapping[str, Any]) -> None:
    """Write a result for programs: one JSON document on standard output; NaN and infinity become null.

    Text stays readable; characters that :func:`visible` would replace are escaped, and so are not lost.
    """
    text = json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n".join(_each(line, _json_escape) for line in text.split("\n")) + "\n")


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
        grid.add_row(*(Text(visible(str(cell))) for cell in row))
    # Piped output keeps its columns: 200 characters hold every table here.
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, highlight=False).print(grid)


def _each(text: str, replace: Callable[[str], str]) -> str:
    """``text`` with what does not print replaced, one character at a time."""
    return text if text.isprintable() else "".join(c if c.isprintable() else replace(c) for c in text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


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
