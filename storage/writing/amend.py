"""Add or replace images and annotations of a committed sample; its attention stays as it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np

from i2am.storage.errors import InputError, NotFound, SampleBusy, ShapeMismatch
from i2am.storage.format.commit_record import MAX_RECORD, CommitRecord, read_record, record_path
from i2am.storage.format.header import load_header
from i2am.storage.format.shard import FileRecord
from i2am.storage.format.signed_json import jsonable, sha256
from i2am.storage.format.zarr_metadata import image_document
from i2am.storage.locations.base import Location
from i2am.storage.locations.local import LocalLocation
from i2am.storage.locations.open import locate
from i2am.storage.writing.array_writer import ArrayWriter
from i2am.storage.writing.lease import LEASE_SECONDS, RENEW_SECONDS
from i2am.storage.writing.staging import Staging, stage
from i2am.storage.writing.writer import RunWriter


def amend(
    path: str | os.PathLike[str],
    sample: str,
    images: Mapping[str, np.ndarray[Any, Any]] | None = None,
    annotations: Mapping[str, Any] | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> CommitRecord:
    """Add or replace images (uint8 [y, x, channel]) and annotations of a committed sample.

    The record is written last: after a crash before it `verify` calls a replaced image damaged, and amending
    again mends it; on an object store the lease has to run out first, which is waited for. Raises `NotFound`
    for a sample that is not committed, `SampleBusy` while it is written.
    """
    location = locate(path, storage_options)
    header = load_header(location)
    index, notes = header.position(sample), jsonable(dict(annotations or {}))
    for name, image in (images or {}).items():
        if image.dtype != np.uint8 or image.ndim != 3 or not image.size:
            got = f"{image.dtype} {image.shape}"
            raise ShapeMismatch(f"image {name!r}", expected="uint8 [y, x, channel]", got=got)
    with RunWriter(location, header, threads=1) as writer:
        if not writer.is_committed(sample):
            raise NotFound(f"sample {sample!r} of {location.url} is not committed", remedy="capture it first")
        staging = _stage(location, sample)
        try:
            layouts = {name: header.image(name, image.shape) for name, image in (images or {}).items()}
            keys = [key for layout in layouts.values() for key in layout.keys(index)]
            before = {key: _read(location, key) for key in (*keys, record_path(sample))}
            record = read_record(location, header, sample)
            files: dict[str, tuple[Path, FileRecord]] = {}
            declared = dict(record.images)
            for number, (name, image) in enumerate((images or {}).items()):
                writer.add_image(name, image.shape)
                layout = layouts[name]
                array = ArrayWriter(layout, index, header.run_id, sample, Path(staging.folder, str(number)))
                array.put_whole(image)
                files |= array.finish()
                digest = sha256(image_document(layout)[1])
                declared[name] = {"shape": list(image.shape), "sha256": digest}
            amended = replace(
                record,
                files=dict(sorted((record.files | {key: file for key, (_, file) in files.items()}).items())),
                images=declared,
                annotations={**record.annotations, **notes},
            )
            content = amended.to_bytes()
            if len(content) > MAX_RECORD:
                what = f"sample {sample!r}: its commit record"
                raise InputError(what, expected=f"at most {MAX_RECORD:,} bytes", got=f"{len(content):,}")
            for key, (local, _) in files.items():
                staging.replace(key, before[key], local.read_bytes())
            staging.replace(record_path(sample), before[record_path(sample)], content)
        finally:
            staging.discard()
    return amended


def _stage(location: Location, sample: str) -> Staging:
    """Hold a committed sample; a lease whose holder is gone runs out while it is looked at."""
    end = monotonic() + LEASE_SECONDS + RENEW_SECONDS
    while True:
        try:
            return stage(location, sample, amends=True)
        except SampleBusy:
            if isinstance(location, LocalLocation) or monotonic() > end:
                raise
        sleep(1)


def _read(location: Location, path: str) -> bytes | None:
    try:
        return location.read(path)
    except FileNotFoundError:
        return None
