"""What a run will cost, before it is written: bytes, files and peak memory.

Without compression the bytes of arrays are exact; with it they rest on the ratios measured by
benchmarks/codecs.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from i2am.storage.errors import StorageFull
from i2am.storage.format.codecs import expected_ratio
from i2am.storage.format.commit_record import CommitRecord
from i2am.storage.format.header import Header
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.layout import ArrayLayout
from i2am.storage.format.shard import FileRecord
from i2am.storage.format.zarr_metadata import root_document
from i2am.storage.writing.declaration import complete_header, make_header
from i2am.storage.writing.write_queue import DEFAULT_QUEUE, default_threads


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer's share of a plan.

    Parameters
    ----------
    name : str
        Layer.
    representation : {"factors", "scores"}
        What is stored.
    dtype : str
        The model's dtype.
    sample_bytes : int
        Bytes of one sample on disk.
    score_bytes : int
        Bytes that the full scores of one sample would need, uncompressed, in the layer's dtype.
    sample_files : int
        Files of one sample.
    buffer_bytes : int
        Memory for inner chunks that are being filled, for each sample under way.
    """

    name: str
    representation: str
    dtype: str
    sample_bytes: int
    score_bytes: int
    sample_files: int
    buffer_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Predicted cost of a run.

    Parameters
    ----------
    layers : tuple of LayerPlan
        In the order of the model.
    samples : int
        Declared samples.
    steps : int
        Denoiser calls.
    codec : str
        The run's codec.
    image_bytes, image_files : int
        Images of one sample, those declared.
    record_bytes : int
        The commit record of one sample, without annotations.
    metadata_bytes, metadata_files : int
        Written once, when the run is created.
    queue_bytes : int
        Arrays that may wait to be written.
    work_bytes : int
        Memory of the writer threads.
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
        """Return the bytes of memory that the writer takes at most.

        Parameters
        ----------
        batch : int
            Samples under way at a time.

        Returns
        -------
        int
            Full queue, chunks being filled, and the threads' own.
        """
        return self.queue_bytes + self.work_bytes + batch * sum(layer.buffer_bytes for layer in self.layers)

    def check_disk(self, path: str | os.PathLike[str], samples: int | None = None) -> None:
        """Refuse what would not fit.

        Parameters
        ----------
        path : str or path-like
            The run, which need not exist yet.
        samples : int, optional
            Samples that are still to be written, with the metadata on disk already; else the whole run
            counts.

        Raises
        ------
        StorageFull
            With the bytes that are needed and those that are free.
        """
        needs = self.total_bytes if samples is None else samples * self.sample_bytes
        free = free_bytes(path)
        if needs > free:
            raise StorageFull(
                f"{os.fspath(path)}: the run does not fit its disk",
                expected=f"at least {readable(needs)} free",
                got=f"{readable(free)} free",
                remedy="choose fewer samples, layers or steps, or another disk, or free some space",
            )


def readable(nbytes: int) -> str:
    """Write a number of bytes for people.

    Parameters
    ----------
    nbytes : int
        Bytes.

    Returns
    -------
    str
        Such as ``1.35 GB`` (powers of 1000).
    """
    size = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Return the free space where a path is or would be.

    Parameters
    ----------
    path : str or path-like
        Need not exist; the nearest directory above it counts.

    Returns
    -------
    int
        Bytes.
    """
    place = Path(os.path.abspath(path))
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _stored(layout: ArrayLayout, dtype: str) -> int:
    if (
        len(layout.shape) == 5
        and layout.dtype == "float32"
        and dtype == "bfloat16"
        and "scores" not in layout.path
    ):
        return layout.stored_bytes(expected_ratio(layout.codec, "bfloat16"))
    return layout.stored_bytes(expected_ratio(layout.codec, layout.dtype))


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
        key: FileRecord(layout.stored_bytes() // layout.shards, 0)
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
    """Predict the cost of a run whose header is complete.

    Parameters
    ----------
    header : Header
        With run id and digests.
    documents : mapping
        The run's metadata but the root document, path to content.
    queue_bytes, threads : int, optional
        See `i2am.storage.writing.writer.RunWriter`.

    Returns
    -------
    Plan
        The prediction.
    """
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
    """Predict bytes, files and peak memory of a run; takes what `i2am.storage.writing.create.create_run` takes.

    Parameters
    ----------
    layers : iterable of LayerSpec
        In the order of the model.
    timesteps : iterable of number
        The scheduler's value for each denoiser call.
    samples : iterable of str
        Ids.
    image_shapes : mapping, optional
        Image name to (y, x, channel).
    codec, shard_bytes, queue_bytes, attrs, threads : optional
        As in `create_run`.
    path : str or path-like, optional
        Where the run shall be: the plan is checked against its disk.

    Returns
    -------
    Plan
        The prediction.

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
