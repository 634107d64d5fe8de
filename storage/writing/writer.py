"""`RunWriter`: writes samples into an existing run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from i2am.storage.errors import (
    AlreadyExists,
    DamagedRun,
    NotFound,
    ShapeMismatch,
    StoreUnavailable,
    UnknownName,
)
from i2am.storage.format.commit_record import committed_names, record_path
from i2am.storage.format.file_names import is_segment
from i2am.storage.format.header import Header, Timestep
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.layout import ArrayLayout
from i2am.storage.format.signed_json import sha256
from i2am.storage.format.zarr_metadata import image_document, only_added_to
from i2am.storage.locations.base import STAGING, Location
from i2am.storage.locations.local import LocalLocation
from i2am.storage.locations.remote import RemoteLocation
from i2am.storage.writing.lease import sweep_leases
from i2am.storage.writing.sink import Sink
from i2am.storage.writing.staging import stage, sweep
from i2am.storage.writing.write_queue import DEFAULT_QUEUE, WriteQueue, default_threads


class RunWriter:
    """Write samples into a run; made by `create_run` or `resume_run`.

    Any number of processes may write different samples of one run at the same time. One process may hold
    several samples open (a batch); they share the queue and the threads. A context manager: leaving it closes
    the writer.

    Parameters
    ----------
    queue_bytes : int, optional
        Bytes of arrays that may wait to be written; `Sink.put` waits beyond that.
    threads : int, optional
        Writer threads; one per processor and at most 4 unless given.
    """

    def __init__(
        self,
        location: Location,
        header: Header,
        *,
        queue_bytes: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._location = location
        self._header = header
        self._queue = WriteQueue(threads or default_threads(), queue_bytes or DEFAULT_QUEUE)
        self._images: dict[str, tuple[ArrayLayout, str]] = {}
        self._available = True
        self._sweep()

    @property
    def path(self) -> str:
        """Path or URL of the run."""
        return self._location.url

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self._header.run_id

    @property
    def attrs(self) -> dict[str, Any]:
        """``attributes["i2am"]`` of the run."""
        return self._header.attributes

    @property
    def layers(self) -> Mapping[str, LayerSpec]:
        """Layer name to specification, representation decided."""
        return self._header.layers

    @property
    def timesteps(self) -> tuple[Timestep, ...]:
        """The scheduler's value for each step."""
        return self._header.timesteps

    @property
    def samples(self) -> tuple[str, ...]:
        """Declared sample ids."""
        return self._header.samples

    @property
    def committed(self) -> tuple[str, ...]:
        """Ids of the samples that exist, in declared order; looked up anew each time."""
        found = committed_names(self._location)
        return tuple(s for s in self._header.samples if s in found)

    @property
    def missing(self) -> tuple[str, ...]:
        """Ids of the samples that do not exist yet, in declared order; looked up anew each time."""
        found = committed_names(self._location)
        return tuple(s for s in self._header.samples if s not in found)

    def is_committed(self, sample: str) -> bool:
        """Return whether a sample exists, looked up anew; cheaper than `committed` for one sample."""
        return self._location.size(record_path(sample)) is not None

    def add_image(self, name: str, shape: Sequence[int]) -> None:
        """Declare an image; nothing happens if it is declared with the same shape.

        Parameters
        ----------
        name : str
            Image name.
        shape : sequence of int
            (y, x, channel).

        Raises
        ------
        InputError, ShapeMismatch
            If name or shape are impossible; if the image is declared with another shape.
        """
        layout = self._header.image(name, shape)
        path, document = image_document(layout)
        if not self._location.write_new(path, document):
            found = self._location.read(path)
            if found != document and not only_added_to(found, document):
                raise self._other_image(name, layout)
        self._images[name] = layout, sha256(document)

    def _other_image(self, name: str, layout: ArrayLayout) -> DamagedRun | ShapeMismatch:
        declared = self._header.images.get(name)
        if declared == layout.shape[1:]:
            return DamagedRun(
                f"{self.path}: images/{name}/zarr.json is damaged", remedy="restore it from a copy of the run"
            )
        return ShapeMismatch(
            f"image {name!r}",
            expected="the shape it was declared with" + (f", {declared}" if declared else ""),
            got=str(layout.shape[1:]),
            remedy="use another name for images of another size",
        )

    def _image(self, name: str) -> tuple[ArrayLayout, str]:
        if name not in self._images:
            if name not in self._header.images:
                known = [*self._header.images, *self._images]
                raise UnknownName("image", name, known, remedy="declare it with add_image or image_shapes")
            self.add_image(name, self._header.images[name])
        return self._images[name]

    @contextmanager
    def sample(self, sample: str) -> Iterator[Sink]:
        """Write one sample: commits when the block ends, and leaves nothing behind after an exception.

        Parameters
        ----------
        sample : str
            A declared id.

        Yields
        ------
        Sink
            Takes the sample's arrays.

        Raises
        ------
        UnknownName, AlreadyExists, SampleBusy
            If the id is not declared; if the sample is committed; if another process is writing it.
        """
        self._queue.refuse_fork()
        self._header.position(sample)
        self._refuse_committed(sample)
        staging = stage(self._location, sample)
        try:
            self._refuse_committed(sample)  # again: it may have been committed before the lock was held
            staging.prepare(self._leftovers(sample) or ())
            sink = Sink(self._header, sample, staging, self._queue, self._image)
        except BaseException:
            staging.discard()
            raise
        try:
            yield sink
            sink.commit()
        except BaseException as error:
            self._available = not isinstance(error, StoreUnavailable)
            sink.discard()
            raise

    def remove(self, sample: str) -> None:
        """Delete a committed sample: it is missing from then on, and may be written again.

        Parameters
        ----------
        sample : str
            A committed id.

        Raises
        ------
        UnknownName, NotFound, SampleBusy
            If the id is not declared, or not committed; if another process is writing it.
        """
        self._header.position(sample)
        staging = stage(self._location, sample, amends=True)
        try:
            if not self.is_committed(sample):
                raise NotFound(
                    f"sample {sample!r} of {self.path} is not committed", remedy="nothing is to do"
                )
            self._location.remove(record_path(sample))
            for path in self._leftovers(sample) or ():  # after a crash here the next writer removes them
                self._location.remove(path)
        finally:
            staging.discard()

    def _sweep(self) -> None:
        if isinstance(self._location, LocalLocation):
            sweep(Path(self._location.url), lambda sample: self._leftovers(sample) or ())
        elif isinstance(self._location, RemoteLocation):
            sweep_leases(self._location, self._leftovers)

    def _leftovers(self, sample: str) -> list[str] | None:
        """Return the files that an uncommitted sample may have in place; None if it is committed."""
        if sample not in self._header.positions:
            return []
        if self.is_committed(sample):
            return None
        index = self._header.position(sample)
        images = [name for name in self._location.names("images") if is_segment(name)]
        found = [*self._header.attention_keys(index), *(f"images/{name}/c.{index}.0.0.0" for name in images)]
        if isinstance(self._location, RemoteLocation):  # large files on their way
            parts = (name for name in self._location.names(STAGING) if name.startswith(f"c.{index}."))
            found.extend(f"{STAGING}/{name}" for name in parts)
        return found

    def _refuse_committed(self, sample: str) -> None:
        if self.is_committed(sample):
            raise AlreadyExists(
                f"sample {sample!r} of {self.path} is committed",
                remedy="go through RunWriter.missing to write what is not there",
            )

    def close(self) -> None:
        """Finish what is queued, end the threads, and remove what crashed writers left."""
        self._queue.close()
        if self._available:  # a server that has just failed for minutes is not asked once more
            self._sweep()

    def __enter__(self) -> RunWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the writer."""
        self.close()
