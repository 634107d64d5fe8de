"""Bytes, files and peak memory of a run, predicted before it is written.

Without compression the bytes of arrays are exact; with it they follow the ratios of benchmarks/codecs.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from i2am.storage.errors import InputError, NoPermission, StorageFull
from i2am.storage.format.codecs import expected_ratio
from i2am.storage.format.commit_record import CommitRecord
from i2am.storage.format.header import Header
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.layout import ArrayLayout
from i2am.storage.format.shard import FileRecord
from i2am.storage.format.zarr_metadata import root_document
from i2am.storage.human_bytes import human_bytes
from i2am.storage.writing.declaration import complete_header, make_header
from i2am.storage.writing.write_queue import DEFAULT_QUEUE, default_threads


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer's share of a plan, of one sample."""

    name: str
    representation: str  # "factors" or "scores"
    dtype: str  # the model's
    sample_bytes: int
    score_bytes: int  # of the full scores, uncompressed, in the layer's dtype
    sample_files: int
    buffer_bytes: int  # memory for chunks that are being filled


@dataclass(frozen=True, slots=True)
class Plan:
    """Predicted cost of a run.

    Parameters
    ----------
    layers : tuple of LayerPlan
        In the order of the model.
    samples, steps : int
        Declared samples; denoiser calls.
    codec : str
        The run's codec.
    image_bytes, image_files : int
        Images of one sample, those declared.
    record_bytes : int
        The commit record of one sample, without annotations.
    metadata_bytes, metadata_files : int
        Written once, when the run is created.
    queue_bytes, work_bytes : int
        Memory of arrays that wait to be written, and of the writer threads.
    """

    layers: tuple[LayerPlan, ...]
    samples: int
    steps: int
    codec: str
    image_bytes: int
    image_files: int
    record_bytes: int
    metadata_bytes: int
    metadata_files: int
    queue_bytes: int
    work_bytes: int

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample on disk: attention, images and commit record."""
        return sum(layer.sample_bytes for layer in self.layers) + self.image_bytes + self.record_bytes

    @property
    def sample_files(self) -> int:
        """Files of one sample, the commit record among them."""
        return sum(layer.sample_files for layer in self.layers) + self.image_files + 1

    @property
    def score_bytes(self) -> int:
        """Bytes that the full scores of one sample would need, uncompressed."""
        return sum(layer.score_bytes for layer in self.layers)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole run."""
        return self.metadata_bytes + self.samples * self.sample_bytes

    @property
    def total_files(self) -> int:
        """Files of the whole run."""
        return self.metadata_files + self.samples * self.sample_files

    @property
    def peak_memory(self) -> int:
        """Bytes of memory that the writer takes at most, with one sample under way."""
        return self.memory(1)

    def memory(self, batch: int) -> int:
        """Bytes of memory that the writer takes at most, with `batch` samples under way at a time."""
        return self.queue_bytes + self.work_bytes + batch * sum(layer.buffer_bytes for layer in self.layers)

    def check_disk(self, path: str | os.PathLike[str], samples: int | None = None) -> None:
        """Raise `StorageFull` if the disk of a path cannot hold the run, or `samples` more of a run there."""
        needs = self.total_bytes if samples is None else samples * self.sample_bytes
        free = free_bytes(path)
        if needs > free:
            raise StorageFull(
                f"{os.fspath(path)}: the run does not fit its disk",
                expected=f"at least {human_bytes(needs)} free",
                got=f"{human_bytes(free)} free",
                remedy="choose fewer samples, layers or steps, or another disk, or free some space",
            )


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Return the free bytes on the disk where a path is or would be; refuse one that cannot be."""
    place = Path(os.path.abspath(path))
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    if not place.is_dir() or usage.total == 0:
        kind = "a folder of a disk" if place.is_dir() else "a folder"
        raise InputError(
            f"{os.fspath(path)} cannot be made", expected=f"{kind} at {place}", got="something else",
            remedy="correct the path",
        )  # fmt: skip
    if not os.access(place, os.W_OK | os.X_OK):
        raise NoPermission(
            f"{os.fspath(path)} cannot be made: {place} may not be written", remedy="choose another path"
        )
    return usage.free


def _stored(layout: ArrayLayout, dtype: str) -> int:
    factors = len(layout.shape) == 5 and layout.dtype == "float32" and "scores" not in layout.path
    numbers = "bfloat16" if factors and dtype == "bfloat16" else layout.dtype
    return layout.stored_bytes(expected_ratio(layout.codec, numbers))


def _layer(spec: LayerSpec, layouts: Mapping[str, ArrayLayout], steps: int) -> LayerPlan:
    buffers = sum(layout.chunk_bytes for layout in layouts.values() if layout.chunk[1] > 1)
    if spec.static_key and "key" in layouts:
        buffers += layouts["key"].chunk_bytes * layouts["key"].grid[1]  # the first key, kept for comparison
    return LayerPlan(
        name=spec.name,
        representation=spec.representation,
        dtype=spec.dtype,
        sample_bytes=sum(_stored(layout, spec.dtype) for layout in layouts.values()),
        score_bytes=prod((spec.heads, spec.gen, spec.ref, steps, 4 if spec.dtype == "float32" else 2)),
        sample_files=sum(layout.shards for layout in layouts.values()),
        buffer_bytes=buffers,
    )


def _record_bytes(header: Header, images: Sequence[ArrayLayout]) -> int:
    """Length of a commit record with the names and the magnitudes that a real one has."""
    layouts = [layout for arrays in header.layouts.values() for layout in arrays.values()]
    index = len(header.samples) // 2
    files = {
        key: FileRecord(layout.stored_bytes() // layout.shards, "0" * 32)
        for layout in (*layouts, *images)
        for key in layout.keys(index)
    }
    described = {layout.path: {"shape": list(layout.shape[1:]), "sha256": "0" * 64} for layout in images}
    when = "2026-01-01T00:00:00+00:00"
    return len(CommitRecord(header.run_id, header.samples[index], index, when, files, described).to_bytes())


def plan_header(
    header: Header,
    documents: Mapping[str, bytes],
    *,
    queue_bytes: int | None = None,
    threads: int | None = None,
) -> Plan:
    """Predict the cost of a run from its complete header and its documents other than the root."""
    steps = len(header.timesteps)
    images = [header.image(name, shape) for name, shape in header.images.items()]
    largest = max(layout.chunk_bytes for arrays in header.layouts.values() for layout in arrays.values())
    metadata = [root_document(header.attributes), *documents.values()]
    return Plan(
        layers=tuple(_layer(spec, header.layouts[name], steps) for name, spec in header.layers.items()),
        samples=len(header.samples),
        steps=steps,
        codec=header.codec,
        image_bytes=sum(_stored(layout, "") for layout in images),
        image_files=len(images),
        record_bytes=_record_bytes(header, images),
        metadata_bytes=sum(map(len, metadata)),
        metadata_files=len(metadata),
        queue_bytes=queue_bytes or DEFAULT_QUEUE,
        work_bytes=(threads or default_threads()) * 4 * largest,
    )


def plan(
    layers: Iterable[LayerSpec],
    timesteps: Iterable[Any],
    samples: Iterable[str],
    image_shapes: Mapping[str, Sequence[int]] | None = None,
    codec: str | None = None,
    shard_bytes: int | None = None,
    queue_bytes: int | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    attrs: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> Plan:
    """Predict bytes, files and peak memory of a run.

    Parameters
    ----------
    layers, timesteps, samples, image_shapes, codec, shard_bytes, queue_bytes, attrs, threads
        As in `i2am.create_run`.
    path : str or path-like, optional
        Where the run will be: the plan is checked against its disk.

    Returns
    -------
    Plan

    Raises
    ------
    InputError, UnknownName
        If the declaration is impossible.
    StorageFull
        If `path` is given and its disk cannot hold the run.
    """
    header = make_header(
        layers, timesteps, samples, attrs, image_shapes, codec=codec, shard_bytes=shard_bytes
    )
    header, documents = complete_header(header)
    predicted = plan_header(header, documents, queue_bytes=queue_bytes, threads=threads)
    if path is not None and "://" not in os.fspath(path):
        predicted.check_disk(path)
    return predicted
