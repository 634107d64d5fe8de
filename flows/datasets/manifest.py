"""A table of samples, CSV or Parquet: a column for each image and text, paths relative to the table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from i2am.flows.datasets.common import Entry, SampleSet, check_ids, file_inside, from_files
from i2am.flows.datasets.table import read_table
from i2am.pipeline.recording.images import IMAGES
from i2am.storage.errors import ConfigError, UnknownName


def open_manifest(
    path: Path, needed: Collection[str], seed: int, limit: int | None, size: tuple[int, int] | None
) -> SampleSet:
    """Samples of a table with a column ``id``, and one for each image and text that the pipeline needs."""
    rows = read_table(path, limit)
    if not rows:
        raise ConfigError(f"manifest {path}", expected="at least one row", got="none")
    for column in ("id", *sorted(set(needed) or {"reference"})):
        if column not in rows[0]:
            raise UnknownName(f"column in {path}", column, rows[0], remedy=f"add a column {column!r}")
    ids = [str(row["id"]) for row in rows]
    check_ids(ids, f"manifest {path}")
    folder = path.parent.resolve()
    entries = {id: _entry(folder, id, row, needed) for id, row in zip(ids, rows, strict=True)}
    return from_files(entries, seed, size)


def _entry(folder: Path, sample: str, row: Mapping[str, Any], needed: Collection[str]) -> Entry:
    """A row's images, inside the folder, mask and source of one size; its texts; its seed."""
    files = {name: file_inside(folder, str(row[name]), sample) for name in IMAGES if row.get(name)}
    texts = {
        str(name): str(value)
        for name, value in row.items()
        if name not in (*IMAGES, "id", "seed") and value not in (None, "")
    }
    if missing := sorted(set(needed) - set(files) - set(texts)):
        kind = "an image" if missing[0] in IMAGES else "a text"
        raise ConfigError(
            f"sample {sample!r}", expected=f"{kind} in column {missing[0]!r}", got="an empty cell"
        )
    return Entry(files, texts, _seed(row.get("seed"), sample))


def _seed(value: Any, sample: str) -> int | None:
    if value is None or value == "":
        return None
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):  # OverflowError: an infinity
        number = -1
    if not 0 <= number < 1 << 63:
        raise ConfigError(
            f"sample {sample!r}: seed", expected="an integer from 0 to 2**63 - 1", got=repr(value)[:60]
        )
    return number
