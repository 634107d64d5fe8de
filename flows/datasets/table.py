"""The rows of a CSV or Parquet file, as plain dictionaries; Parquet, by a bounded process of its own."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from i2am.flows.datasets.common import MAX_BYTES, MAX_SAMPLES
from i2am.flows.datasets.images import Embedded
from i2am.storage.configuration.bounded_file import read_bounded
from i2am.storage.errors import ConfigError

MAX_COLUMNS = 256
MAX_ROW = 1 << 20
"""Characters of a row."""

PARQUET_SECONDS = 60
PARQUET_BYTES = 4 << 30
"""Address space of the process that reads Parquet; Polars alone takes a fifth of it."""

Row = dict[str, Any]


def read_table(path: Path, limit: int | None) -> list[Row]:
    """The first rows of a .csv file, whose cells are all text, or of a .parquet file."""
    what = f"manifest {path}"
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(what, expected="a .csv or .parquet file", got=path.suffix or "no ending")
    raw = read_bounded(path, "manifest", MAX_BYTES, "paths are read from the configuration's folder")
    if path.suffix == ".parquet":
        return read_columns(path, what, limit)
    try:
        return list(islice(_csv(raw), _most(limit)))
    except (csv.Error, ValueError, RecursionError) as error:
        raise ConfigError(what, expected="a table with a heading", got=str(error)[:200]) from None


def _most(limit: int | None) -> int:
    """One row more than a data set may have, so that too many are noticed and not cut off."""
    return MAX_SAMPLES + 1 if limit is None else min(limit, MAX_SAMPLES + 1)


def read_columns(path: Path, what: str, limit: int | None) -> list[Row]:
    """The first rows of a Parquet or Arrow file: texts, numbers, :class:`Embedded`, else :class:`Unread`."""
    try:
        head, *lines = _other_process(path, "rows", str(_most(limit))).splitlines()
        answer = json.loads(head)
        if "error" in answer:
            raise ValueError(answer["error"])
        rows: list[Row] = [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise ConfigError(what, expected="a table with a heading", got=str(error)[:200]) from None
    unread = {name: Unread(kind) for name, kind in answer["unread"].items()}
    for number, row in enumerate(rows):
        row.update(unread)
        for name in answer["pictures"]:
            row[name] = _picture(path, name, number, row[name])
    return rows


@dataclass(frozen=True, slots=True)
class Unread:
    """A cell of a type that samples are not made of."""

    kind: str


def _picture(path: Path, column: str, row: int, cell: Row) -> Any:
    """A picture as the `datasets` library keeps it: its bytes in the table, or the path of a file."""
    if not cell["embedded"]:
        return cell["path"]
    place = f"{path}, column {column!r}, row {row}"
    return Embedded(place, lambda: _other_process(path, "bytes", column, str(row)))


class _Lines(Iterator[str]):
    """Lines of a text; a row that is too long is refused before it is in memory as cells."""

    def __init__(self, text: str) -> None:
        self.lines = io.StringIO(text, newline="")
        self.row = 0

    def __next__(self) -> str:
        line = self.lines.readline(MAX_ROW + 1)
        self.row += len(line)
        if self.row > MAX_ROW:
            raise ValueError(f"a row of more than {MAX_ROW} characters")
        if not line:
            raise StopIteration
        return line


def _csv(raw: bytes) -> Iterator[Row]:
    """Text throughout: an id such as 007 keeps its zeros."""
    lines = _Lines(raw.decode("utf-8-sig"))
    reader = csv.reader(lines, strict=True)
    heading = next(reader, None)
    if not heading:
        raise ValueError("an empty file")
    if len(heading) > MAX_COLUMNS:
        raise ValueError(f"{len(heading)} columns; at most {MAX_COLUMNS}")
    if len(set(heading)) < len(heading):
        raise ValueError("two columns of one name")
    for cells in reader:
        lines.row = 0
        if len(cells) > len(heading):
            raise ValueError(f"line {reader.line_num} has {len(cells)} cells under {len(heading)} columns")
        if cells:
            yield dict.fromkeys(heading) | dict(zip(heading, cells, strict=False))


def _other_process(path: Path, *arguments: str) -> bytes:
    """What the reader process writes; ValueError in one line if it does not end well."""
    # -P: the working directory may be the data set's, with a polars.py of its own
    command = [sys.executable, "-P", "-m", "i2am.flows.datasets.parquet_rows", str(path), *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PARQUET_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"one that takes more than {PARQUET_SECONDS} s to read") from None
    if done.returncode or not done.stdout:
        raise ValueError("no Parquet that can be read in bounded memory")
    return done.stdout
