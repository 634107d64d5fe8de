"""Samples that could not be captured: ``failures/<sample>.json`` in the run, one line of text each.

They are not part of the data: readers pass over them, and those of committed samples no longer count.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from i2am.storage.format.commit_record import committed_names
from i2am.storage.format.file_names import sample_file
from i2am.storage.format.signed_json import DocumentError, canonical, check_digest, parse, signed
from i2am.storage.locations.base import Location, TooLarge
from i2am.storage.locations.open import locate

FOLDER = "failures"
"""Directory of the failures in a run."""

MAX_BYTES = 1 << 20
"""A larger file is not read."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a sample could not be captured."""

    sample: str
    error: str  # one line
    at: str  # UTC, ISO 8601


def record_failure(
    path: str | os.PathLike[str], errors: Mapping[str, str], storage_options: Mapping[str, Any] | None = None
) -> None:
    """Record that samples of an existing run failed (id to one line); earlier failures are replaced."""
    location, now = locate(path, storage_options), datetime.now(UTC).isoformat(timespec="seconds")
    for sample, error in errors.items():
        document = signed(asdict(Failure(sample, error, now)))
        location.write(_place(sample), canonical(document))


def clear_failures(
    path: str | os.PathLike[str], samples: Iterable[str], storage_options: Mapping[str, Any] | None = None
) -> None:
    """Remove the failures of samples, so that they are captured again."""
    location = locate(path, storage_options)
    for sample in samples:
        location.remove(_place(sample))


def failures(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> dict[str, Failure]:
    """Return the failed samples that are not committed.

    There need not be a run. A damaged file counts as none: the sample is simply tried again.
    """
    location = locate(path, storage_options)
    names = [name for name in location.names(FOLDER) if name.endswith(".json")]
    if not names:
        return {}
    found = [_read(location, name) for name in names]
    committed = committed_names(location)
    return {each.sample: each for each in found if each is not None and each.sample not in committed}


def _place(sample: str) -> str:
    return f"{FOLDER}/{sample_file(sample)}.json"


def _read(location: Location, name: str) -> Failure | None:
    try:
        document = parse(location.read(f"{FOLDER}/{name}", MAX_BYTES))
        check_digest(document)
        found = Failure(str(document["sample"]), str(document["error"]), str(document["at"]))
    except (FileNotFoundError, TooLarge, DocumentError, KeyError):
        return None
    return found if _place(found.sample) == f"{FOLDER}/{name}" else None
