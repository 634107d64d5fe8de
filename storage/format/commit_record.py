"""The commit record of a sample, ``commits/<sample>.json``: written last, it makes the sample exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from i2am.storage.errors import DamagedRun, DamagedSample
from i2am.storage.format.file_names import sample_file, sample_of_file
from i2am.storage.format.header import Header
from i2am.storage.format.shard import FileRecord
from i2am.storage.format.signed_json import DocumentError, canonical, parse_signed, signed
from i2am.storage.locations.base import Location, TooLarge

FOLDER = "commits"

MAX_RECORD = 16 << 20
"""Bytes of a record that are read."""


def record_path(sample: str) -> str:
    return f"{FOLDER}/{sample_file(sample)}.json"


def committed_names(location: Location) -> set[str]:
    """Return the ids that have a record, declared or not."""
    return {sample_of_file(name[:-5]) for name in location.names(FOLDER) if name.endswith(".json")}


def unwitnessed(witness: Mapping[str, Mapping[str, Any]], layers: Iterable[str]) -> list[str]:
    """Those of a sample's layers that were not compared with the attention kernel at every step."""
    return [layer for layer in layers if layer not in witness or witness[layer]["unwitnessed_steps"]]


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """What a sample consists of.

    `files` maps paths below the run to sizes and digests; `images` names to {"shape": [y, x, channel],
    "sha256": digest of its zarr.json}; `nonfinite` paths of arrays to their number of NaN and infinities.
    `annotations` are the writer's; `witness` says for each layer how what was stored compared with what the
    attention kernel was given. `digest` is that of the document that was read.
    """

    run_id: str
    sample: str
    index: int
    committed: str
    files: dict[str, FileRecord]
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    nonfinite: dict[str, int] = field(default_factory=dict)
    annotations: dict[str, Any] = field(default_factory=dict)
    witness: dict[str, dict[str, Any]] = field(default_factory=dict)
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        files = {path: {"bytes": f.bytes, "xxh3": f.digest} for path, f in self.files.items()}
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
                "witness": self.witness,
            }
        )

    def to_bytes(self) -> bytes:
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
        dict(document.get("witness", {})),
        str(document["digest"]),
    )


def _file(found: Any) -> FileRecord:
    nbytes, digest = found["bytes"], found["xxh3"]
    if type(nbytes) is not int or nbytes < 0 or not isinstance(digest, str) or len(digest) != 32:
        raise DocumentError("its list of files is no list of sizes and digests")
    return FileRecord(nbytes, digest)


def read_record(location: Location, header: Header, sample: str) -> CommitRecord:
    """Read a record; `DamagedSample` if it is missing, damaged, or another sample's."""
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
