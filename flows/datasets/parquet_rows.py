"""Read a Parquet or Arrow file in a process that may fail: ``-m i2am.flows.datasets.parquet_rows FILE ...``.

``rows MOST`` writes lines of JSON: {"error": one line}, or the columns by kind, then a row each.
``bytes COLUMN ROW`` writes the bytes of one picture. Polars believes the lengths in a file; one that lies
makes it panic, or ask for more memory than there is, which ends this process and no other.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from i2am.flows.console.output import one_line
from i2am.flows.datasets.table import MAX_COLUMNS, PARQUET_BYTES, PARQUET_SECONDS

MAX_OUTPUT = 1 << 28
"""Bytes of text that all columns may have."""


def write_rows(path: str, most: int) -> None:
    """Write the first `most` rows: texts and numbers, and where pictures are."""
    import polars

    found: dict[str, Any]
    try:
        table = _scan(path)
        schema = dict(table.collect_schema())
        if len(schema) > MAX_COLUMNS:
            raise ValueError(f"{len(schema)} columns; at most {MAX_COLUMNS}")
        pictures = [name for name, kind in schema.items() if _is_picture(kind)]
        plain = [name for name, kind in schema.items() if _is_plain(kind)]
        unread = {name: str(kind)[:60] for name, kind in schema.items() if name not in {*pictures, *plain}}
        found = {"pictures": pictures, "unread": unread}
        frame = (
            table.head(most)
            .select(
                *(_as_json(name, schema[name]) for name in plain),
                *(_place(name, schema[name]) for name in pictures),
            )
            .collect()
        )
        # a value that is stored once and stands in a million rows is small until it is written
        size = sum(frame[name].cast(polars.String).str.len_bytes().sum() for name in plain)
        if size > MAX_OUTPUT:
            raise ValueError(f"more than {MAX_OUTPUT} bytes of text")
        # JSON has no infinity: as text it is refused where a number is needed
        floats = [name for name in plain if schema[name].is_float() and frame[name].is_infinite().any()]
        frame = frame.with_columns(polars.col(floats).cast(polars.String))
    except (polars.exceptions.PolarsError, ValueError, OSError) as error:
        found = {"error": one_line(error)}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    if "error" not in found:
        frame.write_ndjson(sys.stdout.buffer)


def write_bytes(path: str, column: str, row: int) -> None:
    """Write the bytes of the picture in one cell."""
    import polars

    cell = _scan(path).select(polars.col(column)).slice(row, 1).collect().item()
    sys.stdout.buffer.write(cell if isinstance(cell, bytes) else cell["bytes"])


def _scan(path: str) -> Any:
    """The file as a lazy frame; what `datasets` saves is an Arrow stream."""
    import polars

    return polars.read_ipc_stream(path).lazy() if path.endswith(".arrow") else polars.scan_parquet(path)


def _is_plain(kind: Any) -> bool:
    import polars

    others = (polars.Binary, polars.Duration, polars.Object, polars.Unknown)
    return not kind.is_nested() and kind not in others


def _as_json(name: str, kind: Any) -> Any:
    """A column that JSON can hold."""
    import polars

    column = polars.col(name)
    number = kind.is_integer() or kind.is_float() or kind == polars.Boolean
    return column if number else column.cast(polars.String)


def _is_picture(kind: Any) -> bool:
    """Whether a column holds pictures as the `datasets` library keeps them, or the bytes of files."""
    import polars

    if isinstance(kind, polars.Struct):
        fields = {field.name: field.dtype for field in kind.fields}
        kinds = (polars.Binary, polars.String, polars.Null)  # Null: empty in every row
        return set(fields) == {"bytes", "path"} and all(field in kinds for field in fields.values())
    return bool(kind == polars.Binary)


def _place(name: str, kind: Any) -> Any:
    """For each picture whether its bytes are in the table, and its path."""
    import polars

    column = polars.col(name)
    nested = isinstance(kind, polars.Struct)
    raw = column.struct.field("bytes") if nested else column
    path = column.struct.field("path").cast(polars.String) if nested else polars.lit(None, polars.String)
    return polars.struct(raw.is_not_null().alias("embedded"), path.alias("path")).alias(name)


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (PARQUET_BYTES, PARQUET_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (PARQUET_SECONDS, PARQUET_SECONDS))
    os.environ.setdefault("POLARS_MAX_THREADS", "2")


if __name__ == "__main__":
    _bounded()
    file, what, *rest = sys.argv[1:]
    if what == "rows":
        write_rows(file, int(rest[0]))
    else:
        write_bytes(file, rest[0], int(rest[1]))
