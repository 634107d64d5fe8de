"""What the commands write, and the only words for it.

Results go to standard output: :func:`print_line`, :func:`print_table`, :func:`print_json`. Progress and
errors go to standard error: :func:`log`, :func:`log_traceback`. Names and error texts may come from a store
or a data set of unknown origin: none of their control, escape or bidirectional characters is written.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from i2am.storage.errors import I2AMError
from i2am.storage.human_bytes import human_bytes as human_bytes
from i2am.storage.redaction import redacted
from i2am.storage.terminal_safe import visible

LONGEST_ERROR = 500
"""Characters that are shown of an error of a library."""


def print_line(line: str) -> None:
    """Write one line of a result."""
    sys.stdout.write(visible(redacted(line)) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[int] = ()) -> None:
    """Write a table; cells are plain text without markup, the columns `right` are set flush right."""
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


def print_json(document: Mapping[str, Any]) -> None:
    """Write one JSON document; NaN and infinity become null, characters that do not print are escaped."""
    text = json.dumps(_jsonable(document), indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text) + "\n")


def log(line: str) -> None:
    """Write one line about the work, such as progress or an error."""
    sys.stderr.write(visible(redacted(" ".join(line.split()))) + "\n")
    sys.stderr.flush()


def log_traceback() -> None:
    """Write the traceback of the exception that is being handled."""
    for line in redacted(traceback.format_exc()).splitlines():
        sys.stderr.write(visible(line) + "\n")


def one_line(error: BaseException) -> str:
    """An error in one line; an error of a library is cut and preceded by its class."""
    if isinstance(error, I2AMError):
        return str(error)
    return " ".join(redacted(f"{type(error).__name__}: {error}")[:LONGEST_ERROR].split())


def counted(number: int, noun: str) -> str:
    """A number of things: "1 sample", "2 samples"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def number(value: float | None) -> str:
    """A number with three digits after the point; empty where there is none."""
    return "" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share as whole per cents; empty where there is none."""
    return "" if value is None else f"{100 * value:.0f}%"


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _jsonable(value: Any) -> Any:
    """`value` with NumPy scalars, paths, tuples and NaN turned into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value if value is None or isinstance(value, (str, int)) else str(value)
