"""Repositories of the `datasets` library on disk, read without that library.

As they come from the hub: Parquet files named after their split, ``data/train-00000-of-00002.parquet`` or
``train/0000.parquet``. As ``save_to_disk`` writes them: ``train/state.json`` and Arrow files beside it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from i2am.flows.config.samples import Datasets
from i2am.flows.datasets.common import (
    SampleSet,
    check_ids,
    existing_folder,
    file_inside,
    from_files,
    read_text,
)
from i2am.flows.datasets.manifest import check_columns, entry_of, renamed, sample_id
from i2am.flows.datasets.table import Row, read_columns
from i2am.storage.errors import ConfigError, NotFound


def open_datasets(
    config: Datasets, needed: Collection[str], seed: int, limit: int | None, size: tuple[int, int] | None
) -> SampleSet:
    """One sample for each row of a split; ids are those of a column ``id``, else ``SPLIT-000012``."""
    folder = existing_folder(config.folder, "repository")
    rows: list[Row] = []
    for file in _files(folder, config.split):
        if limit is None or len(rows) < limit:
            rows += read_columns(file, f"table {file}", None if limit is None else limit - len(rows))
    kind = f"column in {folder}"
    named = [renamed(row, config.columns, kind) for row in rows]
    for row in named[:1]:
        check_columns(kind, row, needed or {"reference"}, "say in columns: what the data set calls it")
    ids = [
        sample_id(row["id"], f"row {number} of {folder}") if "id" in row else f"{config.split}-{number:06d}"
        for number, row in enumerate(named)
    ]
    check_ids(ids, f"split {config.split!r} of {folder}")
    return from_files(
        {id: entry_of(folder, id, row, needed) for id, row in zip(ids, named, strict=True)}, seed, size
    )


def _files(folder: Path, split: str) -> list[Path]:
    """The tables of a split, in order."""
    for place in (split, "."):
        state = folder / place / "state.json"
        if state.is_file() and (place != "." or not (folder / "dataset_dict.json").exists()):
            text = read_text(file_inside(folder, str(state), split), "state of the data set")
            try:
                names = [str(each["filename"]) for each in json.loads(text)["_data_files"]]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ConfigError(
                    str(state), expected="what save_to_disk writes", got="another text"
                ) from None
            return [file_inside(folder, f"{place}/{name}", split) for name in names]
    found = {*folder.glob(f"**/{split}-*.parquet"), *folder.glob(f"**/{split}.parquet")}
    found |= set(folder.glob(f"**/{split}/*.parquet"))
    if not found:
        raise NotFound(
            f"repository {folder} holds no split {split!r}",
            remedy=f"expected {split}-*.parquet or {split}/state.json in it",
        )
    return [file_inside(folder, str(file), split) for file in sorted(found)]
