"""Samples that were set aside because they could not be captured: ``failures/<sample>.json`` in the run.

Not part of what a run holds: a reader passes over them, and a sample that is committed later has none.
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
"""Directory of the notes."""

MAX_BYTES = 1 << 20
"""Bytes of a note that are read."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a sample was set aside.

    Parameters
    ----------
    sample : str
        Sample id.
    error : str
        One line.
    at : str
        UTC time, ISO 8601.
    """

    sample: str
    error: str
    at: str


def record_failure(
    path: str | os.PathLike[str], errors: Mapping[str, str], storage_options: Mapping[str, Any] | None = None
) -> None:
    """Note that samples of an existing run failed; an earlier note of the same sample is replaced.

    Parameters
    ----------
    path : str or path-like
        The run.
    errors : mapping
        Sample id to one line.
    storage_options : mapping, optional
        Options of the file system, for URLs.

    Raises
    ------
    StorageFull, NoPermission
        If the note cannot be written.
    """
    location, now = locate(path, storage_options), datetime.now(UTC).isoformat(timespec="seconds")
    for sample, error in errors.items():
        document = signed(asdict(Failure(sample, error, now)))
        location.write(_place(sample), canonical(document))


def clear_failures(
    path: str | os.PathLike[str], samples: Iterable[str], storage_options: Mapping[str, Any] | None = None
) -> None:
    """Remove the notes of samples, so that they are captured again.

    Parameters
    ----------
    path : str or path-like
        The run.
    samples : iterable of str
        Sample ids; those without a note are passed over.
    storage_options : mapping, optional
        Options of the file system, for URLs.
    """
    location = locate(path, storage_options)
    for sample in samples:
        location.remove(_place(sample))


def failures(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> dict[str, Failure]:
    """Return the samples that are set aside and not committed.

    Parameters
    ----------
    path : str or path-like
        The run, or a place where none is.
    storage_options : mapping, optional
        Options of the file system, for URLs.

    Returns
    -------
    dict
        Sample id to its failure. A damaged note counts as none: the sample is simply tried again.
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
