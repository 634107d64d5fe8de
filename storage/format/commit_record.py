"""The commit record of a sample, ``commits/<sample>.json``: written last, it makes the sample exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from i2am.storage.errors import DamagedRun, DamagedSample
from i2am.storage.format.file_names import sample_file, sample_of_file
from i2am.storage.format.header import Header
from i2am.storage.format.shard import FileRecord
from i2am.storage.format.signed_json import DocumentError, canonical, parse_signed, signed
from i2am.storage.locations.base import Location, TooLarge

FOLDER = "commits"
"""Directory of the records."""


MAX_RECORD = 16 << 20
"""Bytes of a record that are read."""


def record_path(sample: str) -> str:
    """Return the path of a sample's record below the run.

    Parameters
    ----------
    sample : str
        Sample id.

    Returns
    -------
    str
        ``commits/<encoded id>.json``.
    """
    return f"{FOLDER}/{sample_file(sample)}.json"


def committed_names(location: Location) -> set[str]:
    """Return the ids that have a record.

    Parameters
    ----------
    location : Location
        Where the run lives.

    Returns
    -------
    set of str
        Decoded ids; whether they are declared is for the caller to see.
    """
    return {sample_of_file(name[:-5]) for name in location.names(FOLDER) if name.endswith(".json")}


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """What a sample consists of.

    Parameters
    ----------
    run_id, sample, index
        Which sample of which run.
    committed : str
        UTC time, ISO 8601.
    files : dict
        Path below the run to size and checksum.
    images : dict
        Image name to {"shape": [y, x, channel], "sha256": of its zarr.json}.
    nonfinite : dict
        Array path to the number of NaN and infinite values, where there are any.
    annotations : dict
        What the writer had to say: seed, seconds, ...
    digest : str
        Of the document it was read from; empty for one that was not read.
    """

    run_id: str
    sample: str
    index: int
    committed: str
    files: dict[str, FileRecord]
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    nonfinite: dict[str, int] = field(default_factory=dict)
    annotations: dict[str, Any] = field(default_factory=dict)
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the signed document.

        Returns
        -------
        dict
            With ``digest``.
        """
        files = {path: {"bytes": f.bytes, "crc32c": f"{f.crc32c:08x}"} for path, f in self.files.items()}
        return signed(
            {
                "format": 1,
                "run_id": self.run_id,
                "sample": self.sample,
                "index": self.index,
                "committed": self.committed,
                "files": files,
                "images": self.images,
                "nonfinite": self.nonfinite,
                "annotations": self.annotations,
            }
        )

    def to_bytes(self) -> bytes:
        """Return the file's content.

        Returns
        -------
        bytes
            Canonical form.
        """
        return canonical(self.to_json())


def _build_record(document: Mapping[str, Any], header: Header, sample: str) -> CommitRecord:
    """Turn a document into a record, checked against the run."""
    if document["run_id"] != header.run_id:
        raise DocumentError("it belongs to another run")
    index = header.position(sample)
    if document["sample"] != sample or document["index"] != index:
        raise DocumentError(f"it belongs to sample {document['sample']!r}")
    files = {path: _file(found) for path, found in document["files"].items()}
    images = dict(document["images"])
    wanted = set(header.attention_keys(index))
    for name, image in images.items():
        wanted.update(header.image(name, image["shape"]).keys(index))
    if set(files) != wanted:
        raise DocumentError("its list of files does not fit the run's layout")
    return CommitRecord(
        header.run_id,
        sample,
        index,
        str(document["committed"]),
        files,
        images,
        dict(document["nonfinite"]),
        dict(document["annotations"]),
        str(document["digest"]),
    )


def _file(found: Any) -> FileRecord:
    nbytes, crc = found["bytes"], found["crc32c"]
    if type(nbytes) is not int or nbytes < 0 or not isinstance(crc, str):
        raise DocumentError("its list of files is no list of sizes and checksums")
    return FileRecord(nbytes, int(crc, 16))


def read_record(location: Location, header: Header, sample: str) -> CommitRecord:
    """Read a record and check it against its own digest and the run.

    Parameters
    ----------
    location : Location
        Where the run lives.
    header : Header
        The run's header.
    sample : str
        A declared sample.

    Returns
    -------
    CommitRecord
        What the sample consists of.

    Raises
    ------
    DamagedSample
        If the record is missing, damaged, or another's.
    """
    path = record_path(sample)
    try:
        data = location.read(path, MAX_RECORD)
    except FileNotFoundError as error:
        raise DamagedSample(sample, None, f"its commit record {path} is missing") from error
    except (DamagedRun, TooLarge) as error:
        raise DamagedSample(sample, None, f"commit record {path}: {error}") from error
    try:
        return _build_record(parse_signed(data), header, sample)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DamagedSample(sample, None, f"commit record {path}: {error}") from error
