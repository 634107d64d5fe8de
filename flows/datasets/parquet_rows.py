"""Read Parquet from standard input in a process that may fail: ``-m i2am.flows.datasets.parquet_rows MOST``.

Writes lines of JSON: {} or {"error": one line}, then a row each. Polars believes the lengths in a file; one
that lies makes it panic, or ask for more memory than there is, which ends this process and no other.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys

from i2am.flows.console.output import one_line
from i2am.flows.datasets.table import MAX_COLUMNS, PARQUET_BYTES, PARQUET_SECONDS

MAX_OUTPUT = 1 << 28
"""Bytes of text that all columns may have."""


def main(most: int) -> None:
    """Write the first `most` rows."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (PARQUET_BYTES, PARQUET_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (PARQUET_SECONDS, PARQUET_SECONDS))
    os.environ.setdefault("POLARS_MAX_THREADS", "2")
    import polars

    raw = io.BytesIO(sys.stdin.buffer.read())
    found: dict[str, str] = {}
    try:
        columns = list(polars.read_parquet_schema(raw))
        raw.seek(0)
        if len(columns) > MAX_COLUMNS:
            raise ValueError(f"{len(columns)} columns; at most {MAX_COLUMNS}")
        frame = polars.read_parquet(raw, n_rows=most)
        infinite = frame.select(polars.selectors.float().is_infinite().any())
        if any(infinite.row(0) if infinite.width else ()):
            raise ValueError("a number that is infinite")  # JSON would lose it
        # a value that is stored once and stands in a million rows is small until it is written
        size = sum(frame[name].cast(polars.String).str.len_bytes().sum() for name in columns)
        if size > MAX_OUTPUT:
            raise ValueError(f"more than {MAX_OUTPUT} bytes of text")
    except (polars.exceptions.PolarsError, ValueError, OSError) as error:
        found = {"error": one_line(error)}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    if not found:
        frame.write_ndjson(sys.stdout.buffer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
