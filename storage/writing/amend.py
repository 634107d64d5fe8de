"""Add or replace images and annotations of a committed sample; its attention stays as it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from i2am.storage.errors import InputError, NotFound, ShapeMismatch
from i2am.storage.format.commit_record import MAX_RECORD, CommitRecord, read_record, record_path
from i2am.storage.format.header import load_header
from i2am.storage.format.shard import FileRecord
from i2am.storage.format.signed_json import jsonable, sha256
from i2am.storage.format.zarr_metadata import image_document
from i2am.storage.locations.open import locate
from i2am.storage.writing.array_writer import ArrayWriter
from i2am.storage.writing.staging import stage
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
    again mends it. Raises `NotFound` for a sample that is not committed, `SampleBusy` while it is written.
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
        staging = stage(location, sample)
        try:
            record = read_record(location, header, sample)
            files: dict[str, tuple[Path, FileRecord]] = {}
            declared = dict(record.images)
            for number, (name, image) in enumerate((images or {}).items()):
                writer.add_image(name, image.shape)
                layout = header.image(name, image.shape)
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
                location.write(key, local.read_bytes())
            location.write(record_path(sample), content)
        finally:
            staging.discard()
    return amended
