"""Shards of WebDataset: tar files whose members ``KEY.EXTENSION`` make one sample for each key.

``KEY.source.png`` is the image ``source``, ``KEY.txt`` the prompt, and values of ``KEY.json`` are texts; the
configuration's ``columns`` name other extensions and values. Pictures are read where they lie.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from i2am.flows.config.samples import WebDataset
from i2am.flows.console.output import one_line
from i2am.flows.datasets.common import MAX_SAMPLES, SampleSet, check_ids, from_files
from i2am.flows.datasets.images import Embedded
from i2am.flows.datasets.manifest import check_columns, entry_of, renamed
from i2am.flows.datasets.table import Row
from i2am.storage.errors import ConfigError, NotFound

MAX_TEXT = 1 << 16
"""Bytes of a member that is text."""

MAX_PICTURE = 1 << 28
"""Bytes of a picture."""

_PICTURES = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm", "pgm")


def open_webdataset(
    config: WebDataset, needed: Collection[str], seed: int, limit: int | None, size: tuple[int, int] | None
) -> SampleSet:
    """One sample for each key, in the order of the shards; the key is its id."""
    shards = sorted(config.shards.parent.glob(config.shards.name))
    if not shards:
        raise NotFound(f"shards {config.shards} do not exist", remedy="name .tar files")
    most = MAX_SAMPLES if limit is None else min(limit, MAX_SAMPLES)
    rows: dict[str, Row] = {}
    for shard in shards:
        for key, extension, value in _members(shard):
            if key not in rows and len(rows) == most:
                break
            row = rows.setdefault(key, {})
            if extension in row:
                what = f"shard {shard}"
                raise ConfigError(what, expected="each member once", got=f"{key}.{extension} more than once")
            row[extension] = value
    check_ids(list(rows), f"shards {config.shards}")
    kind = f"extension in {config.shards}"
    named = {key: renamed(_named(key, row), config.columns, kind) for key, row in rows.items()}
    first = next(iter(named.values()))
    check_columns(kind, first, needed or {"reference"}, "say in columns: which extension it has")
    folder = config.shards.parent.resolve()
    return from_files({key: entry_of(folder, key, row, needed) for key, row in named.items()}, seed, size)


def _named(key: str, row: Row) -> Row:
    """A sample's members by extension, and what they are by our own names."""
    found = dict(row)
    for extension in row:
        name, _, ending = extension.rpartition(".")
        if name and ending in _PICTURES:
            found[name] = found.pop(extension)
        elif extension == "json":
            try:
                values = json.loads(found.pop("json"))
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{key}.json", expected="JSON", got=one_line(error)) from None
            found |= values if isinstance(values, dict) else {}
        elif extension == "txt":
            found["prompt"] = found.pop("txt").strip()
    return found


class _Headers(io.BufferedReader):
    """A file of which nothing long is read: tarfile would take a header's word for its length."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_TEXT:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _members(shard: Path) -> Iterator[tuple[str, str, Any]]:
    """Key, extension and value of each member: a text, or a picture that is read later."""
    what = f"shard {shard}"
    try:
        length = shard.stat().st_size
        with _Headers(io.FileIO(shard)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                extension = member.name.rpartition("/")[2].partition(".")[2]
                if not member.isreg() or not extension:
                    continue
                textual, place = extension in ("txt", "json"), f"{shard}, {member.name[:200]}"
                most = MAX_TEXT if textual else MAX_PICTURE
                if member.offset_data + member.size > length or member.size > most:
                    got = f"{member.name[:200]} of {member.size} bytes"
                    raise ConfigError(what, expected="members that are whole", got=got)
                raw = _reader(shard, member.offset_data, member.size)
                value = raw().decode("utf-8-sig") if textual else Embedded(place, raw)
                yield member.name[: -len(extension) - 1], extension.lower(), value
    except (tarfile.TarError, ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(what, expected="an uncompressed tar file", got=one_line(error)) from None


def _reader(shard: Path, start: int, size: int) -> Any:
    def read() -> bytes:
        with shard.open("rb") as file:
            file.seek(start)
            return file.read(size)

    return read
