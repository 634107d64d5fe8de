"""A table of samples, CSV or Parquet: a column for each image and text, paths relative to the table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from i2am.flows.datasets.common import Entry, SampleSet, check_ids, file_inside, from_files
from i2am.flows.datasets.images import Embedded, Source
from i2am.flows.datasets.table import Unread, read_table
from i2am.pipeline.recording.images import IMAGES
from i2am.storage.errors import ConfigError, UnknownName


def open_manifest(
    path: Path, needed: Collection[str], seed: int, limit: int | None, size: tuple[int, int] | None
) -> SampleSet:
    """Samples of a table with a column ``id``, and one for each image and text that the pipeline needs."""
    rows = read_table(path, limit)
    if not rows:
        raise ConfigError(f"manifest {path}", expected="at least one row", got="none")
    check_columns(f"column in {path}", rows[0], {"id", *(needed or {"reference"})})
    ids = [sample_id(row["id"], f"manifest {path}, row {number}") for number, row in enumerate(rows, 1)]
    check_ids(ids, f"manifest {path}")
    folder = path.parent.resolve()
    entries = {id: entry_of(folder, id, row, needed) for id, row in zip(ids, rows, strict=True)}
    return from_files(entries, seed, size)


def check_columns(kind: str, row: Mapping[str, Any], needed: Collection[str], remedy: str = "") -> None:
    """Refuse a table without a column that the pipeline needs."""
    for column in sorted(needed):
        if column not in row:
            raise UnknownName(kind, column, row, remedy=remedy or f"add a column {column!r}")


def renamed(row: Mapping[str, Any], columns: Mapping[str, str], kind: str) -> dict[str, Any]:
    """A row under our names, where `columns` says what the data set calls them; others keep their own."""
    check_columns(kind, row, columns.values(), "correct columns:")
    others = {name: value for name, value in row.items() if name not in columns.values()}
    return {**others, **{name: row[column] for name, column in columns.items()}}


def sample_id(value: Any, what: str) -> str:
    """A text or an integer as id; a cell without a value is none."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    got = "an empty cell" if value is None else value.kind if isinstance(value, Unread) else repr(value)[:60]
    raise ConfigError(f"{what}: id", expected="a text or an integer", got=got)


def entry_of(folder: Path, sample: str, row: Mapping[str, Any], needed: Collection[str]) -> Entry:
    """A row's images, as files inside the folder or in the table; its texts; its seed.

    An empty cell is an empty text where the pipeline needs one. Columns of other types are passed over.
    """
    files: dict[str, Source] = {}
    texts: dict[str, str] = {}
    for name, value in row.items():
        if name in IMAGES:
            if value not in (None, "") and not (isinstance(value, Unread) and name not in needed):
                files[name] = _picture(folder, sample, name, value)
        elif name in needed:
            texts[name] = _text(sample, name, value)
        elif name not in ("id", "seed") and isinstance(value, (str, int, float)) and value != "":
            texts[name] = str(value)
    if missing := sorted(set(needed) - set(files) - set(texts)):
        raise ConfigError(
            f"sample {sample!r}", expected=f"an image in column {missing[0]!r}", got="an empty cell"
        )
    return Entry(files, texts, _seed(row.get("seed"), sample))


def _picture(folder: Path, sample: str, name: str, value: Any) -> Source:
    if isinstance(value, Embedded):
        return value
    if not isinstance(value, str):
        got = value.kind if isinstance(value, Unread) else repr(value)[:60]
        raise ConfigError(f"sample {sample!r}: {name}", expected="an image's path or bytes", got=got)
    return file_inside(folder, value, sample)


def _text(sample: str, name: str, value: Any) -> str:
    if isinstance(value, (Unread, Embedded)):
        got = value.kind if isinstance(value, Unread) else "bytes"
        raise ConfigError(f"sample {sample!r}: {name}", expected="a text", got=got)
    return "" if value is None else str(value)


def _seed(value: Any, sample: str) -> int | None:
    if value is None or value == "":
        return None
    whole = isinstance(value, (int, str)) or (isinstance(value, float) and value.is_integer())
    try:
        number = int(value) if whole and not isinstance(value, bool) else -1
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 63:
        raise ConfigError(
            f"sample {sample!r}: seed", expected="an integer from 0 to 2**63 - 1", got=repr(value)[:60]
        )
    return number
