"""A copy of a run without its attention: metadata, norms, images and commit records, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from i2am.storage.errors import DamagedRun, DamagedSample
from i2am.storage.format.commit_record import record_path
from i2am.storage.format.file_names import layer_of
from i2am.storage.format.header import ROOT, Header, interpret
from i2am.storage.format.marginals_only import MARGINALS, is_left_out
from i2am.storage.format.shard import FileRecord, file_hash, record_of
from i2am.storage.format.signed_json import canonical, signed
from i2am.storage.format.zarr_metadata import root_document
from i2am.storage.locations.base import Location
from i2am.storage.locations.open import locate
from i2am.storage.reading.quick_check import document_state
from i2am.storage.reading.run import Run
from i2am.storage.writing.atomic_directory import created_meanwhile

IMAGES = "images/"
"""What the paths of images begin with."""


def copy_without_attention(
    run: Run,
    target: Location,
    samples: Sequence[str],
    storage_options: Mapping[str, Any] | None = None,
    on_sample: Callable[[str], None] | None = None,
) -> None:
    """Copy everything of some samples but the shards of their layers; the root document comes last.

    The copy has the run's id and its samples' fingerprints, so that whatever was derived from the run stays
    valid for it.
    """
    source, attributes, header = locate(run.path, storage_options), run.attrs, interpret(run.attrs)
    added = {f"{IMAGES}{name}/{ROOT}" for name in run.images} - set(attributes["metadata"])
    for path in (*attributes["metadata"], *sorted(added)):
        target.write(path, _document(header, source, path, attributes["metadata"].get(path)))
    for sample in samples:
        run.check(sample)
        record = run.record(sample)
        for path, file in record["files"].items():
            if not is_left_out(path):
                wanted = FileRecord(file["bytes"], file["xxh3"])
                target.write(path, _file(source, run.run_id, sample, path, wanted))
        target.write(record_path(sample), canonical(record))
        if on_sample is not None:
            on_sample(sample)
    if not target.write_new(ROOT, root_document(signed({**attributes, "kept": MARGINALS}))):
        raise created_meanwhile(target.url)


def _document(header: Header, source: Location, path: str, digest: str | None) -> bytes:
    """A ``zarr.json`` as it was written; those of images added later are checked with the samples."""
    with suppress(FileNotFoundError):
        data = source.read(path)
        if digest is None or document_state(header, path, digest, data) != "damaged":
            return data
    raise DamagedRun(f"{source.url}: {path} is damaged", remedy="restore it from a copy of the run")


def _file(source: Location, run_id: str, sample: str, path: str, wanted: FileRecord) -> bytes:
    data = source.read(path)
    if record_of(data, file_hash(run_id, sample, path)) != wanted:
        raise DamagedSample(sample, layer_of(path), f"{path}: its digest disagrees with the commit record")
    return data
