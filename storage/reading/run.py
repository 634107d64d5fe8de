"""`Run`: a run opened for reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import compress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from i2am.storage.errors import DamagedRun, DamagedSample, NoAnswer, UnknownName
from i2am.storage.format.block import Block
from i2am.storage.format.commit_record import CommitRecord
from i2am.storage.format.file_names import is_segment
from i2am.storage.format.header import ROOT, Header, Timestep, load_header
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.layout import ArrayLayout
from i2am.storage.format.marginals_only import NORMS, need_attention
from i2am.storage.format.shard import ShardError
from i2am.storage.index_selection import Indices, select_indices
from i2am.storage.locations.base import Location
from i2am.storage.reading.array_reader import ArrayReader
from i2am.storage.reading.quick_check import Checker
from i2am.storage.reading.record_cache import RecordCache

if TYPE_CHECKING:
    import dask.array as da

Array = np.ndarray[Any, Any]

NORMED = "a layer captured with value_norms=True, of a model that lets them be measured"


class Run:
    """The committed samples of a run, read only. Cheap to make, to copy and to send to another process.

    Whatever is read is checked: damaged bytes raise `DamagedSample`, and never come out as numbers.

    Parameters
    ----------
    location : Location
        Where the run lives.
    header : Header
        What its root document says.
    samples : tuple of str
        The committed samples that this object shows.
    """

    def __init__(self, location: Location, header: Header, samples: tuple[str, ...]) -> None:
        self._location = location
        self._header = header
        self._samples = samples
        self._committed = frozenset(samples)
        self._records = RecordCache(location, header, samples)
        self._checker = Checker(location, header)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the location and a bit for each sample: the other process reads the header itself, once."""
        shown = np.packbits([sample in self._committed for sample in self._header.samples]).tobytes()
        return _unpickle, (self._location, self.run_id, shown)

    def __repr__(self) -> str:
        return f"<Run {self.path}: {len(self.samples)} of {len(self.declared)} samples>"

    @property
    def path(self) -> str:
        """Path or URL of the run."""
        return self._location.url

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self._header.run_id

    @property
    def samples(self) -> tuple[str, ...]:
        """Ids of the samples that were committed when the run was opened, in declared order."""
        return self._samples

    @property
    def declared(self) -> tuple[str, ...]:
        """Ids of all samples that the run shall have."""
        return self._header.samples

    def position(self, sample: str) -> int:
        """Return the index of a declared `sample`, also on axis 0 of every array, or raise `UnknownName`."""
        return self._header.position(sample)

    @property
    def layers(self) -> Mapping[str, LayerSpec]:
        """Layer name to specification, representation decided, in the order of the model."""
        return MappingProxyType(self._header.layers)

    @property
    def timesteps(self) -> tuple[Timestep, ...]:
        """The scheduler's value for each step."""
        return self._header.timesteps

    @property
    def attrs(self) -> dict[str, Any]:
        """``attributes["i2am"]`` of the root document."""
        return self._header.attributes

    @cached_property
    def images(self) -> tuple[str, ...]:
        """Names of the images that the run has: those declared at creation, then those added later."""
        declared, place = self._header.images, self._location
        others = (name for name in place.names("images") if is_segment(name) and name not in declared)
        added = [name for name in others if place.size(f"images/{name}/{ROOT}") is not None]
        return (*declared, *added)

    def scores(self, layer: str | LayerSpec) -> da.Array:
        """Return the scaled logits of all committed samples, lazily.

        Parameters
        ----------
        layer : str or LayerSpec
            Name of a layer.

        Returns
        -------
        dask.array.Array
            (sample, step, head, gen, ref) float32, the same from either representation. Reads nothing until
            computed.

        Raises
        ------
        UnknownName
            If there is no such layer.
        NoAnswer
            If the run was exported with its marginals alone.
        """
        from i2am.storage.reading.dask_arrays import lazy_scores

        need_attention(self.attrs, self.path, "scores")
        return lazy_scores(self, self.spec(layer))

    def lse(self, layer: str | LayerSpec) -> da.Array:
        """Return the log-sum-exp of each row over all keys of a joint softmax, lazily.

        Parameters
        ----------
        layer : str or LayerSpec
            Name of a layer.

        Returns
        -------
        dask.array.Array
            (sample, step, head, gen) float32.

        Raises
        ------
        UnknownName
            If there is no such layer.
        NoAnswer
            If the layer was captured without it, or the run exported with its marginals alone.
        """
        need_attention(self.attrs, self.path, "lse")
        return self._lazy(layer, "lse", "a layer of a joint softmax, captured with lse=True")

    def value_norm(self, layer: str | LayerSpec) -> da.Array:
        """Return the norms of W_o v, of each head and reference token, lazily.

        Parameters
        ----------
        layer : str or LayerSpec
            Name of a layer.

        Returns
        -------
        dask.array.Array
            (sample, step, head, ref) float32; one step where keys and values do not change over time.

        Raises
        ------
        UnknownName
            If there is no such layer.
        NoAnswer
            If the layer was captured without it.
        """
        return self._lazy(layer, "value_norm", NORMED)

    def contribution(self, layer: str | LayerSpec) -> da.Array:
        """Return norms of what the reference adds to generated tokens, over those of what it is added to.

        Parameters
        ----------
        layer : str or LayerSpec
            Name of a layer.

        Returns
        -------
        dask.array.Array
            (sample, step, gen) float32, lazy.

        Raises
        ------
        UnknownName
            If there is no such layer.
        NoAnswer
            If the layer was captured without it.
        """
        return self._lazy(layer, "contribution", NORMED)

    def _lazy(self, layer: str | LayerSpec, kind: str, expected: str) -> da.Array:
        from i2am.storage.reading.dask_arrays import lazy_stored

        spec = self.spec(layer)
        if not getattr(spec, kind):
            raise NoAnswer(f"layer {spec.name!r} has no {kind}", expected=expected)
        return lazy_stored(self, spec, kind, self._header.layout(spec, kind).shape[1:])

    def read(
        self, layer: str | LayerSpec, sample: str, steps: Indices = None, heads: Indices = None
    ) -> Block:
        """Read some steps and heads of one sample now.

        Parameters
        ----------
        layer : str or LayerSpec
            Name of a layer.
        sample : str
            A committed sample.
        steps, heads : slice or sequence of int, optional
            Which ones, all by default; negative numbers count from the end.

        Returns
        -------
        Block
            Raw values in the stored dtype.

        Raises
        ------
        UnknownName
            If layer or sample do not exist.
        InputError
            If an index is out of range.
        DamagedSample
            If the bytes are not what was written.
        NoAnswer
            If the run was exported with its marginals alone.
        """
        spec = self.spec(layer)
        at = select_indices("step", steps, len(self.timesteps))
        rows = select_indices("head", heads, spec.heads)
        if spec.representation == "scores":
            return Block(None, None, self.read_kind(spec, "scores", sample, at, rows), spec.logit_scale)
        query = self.read_kind(spec, "query", sample, at, rows)
        key = self.read_kind(spec, "key", sample, [0] if spec.static_key else at, rows)
        return Block(query, key, None, spec.logit_scale)

    def read_kind(
        self, spec: LayerSpec, kind: str, sample: str, steps: Sequence[int], heads: Sequence[int]
    ) -> Array:
        """Read an array of a layer, (step, head, ...) or (step, gen), in the stored dtype; see `Run.read`."""
        if kind not in NORMS:
            need_attention(self.attrs, self.path, f"attention of layer {spec.name!r}")
        return self._read_layout(self._header.layout(spec, kind), spec.name, sample, steps, heads)

    def _read_layout(
        self, layout: ArrayLayout, layer: str, sample: str, steps: Sequence[int], heads: Sequence[int]
    ) -> Array:
        record = self._record(sample)
        with _damage(sample, layer):
            reader = ArrayReader(self._location, layout, self.run_id, record.index, record.files)
            return reader.read(steps, heads)

    def image(self, name: str, sample: str) -> Array:
        """Return one image of a sample.

        Parameters
        ----------
        name : str
            Image name.
        sample : str
            A committed sample.

        Returns
        -------
        ndarray
            (y, x, channel) uint8.

        Raises
        ------
        UnknownName
            If sample or image do not exist, or the sample has no such image.
        DamagedSample
            If the bytes are not what was written.
        """
        record = self._record(sample)
        if name not in record.images:
            raise UnknownName("image", name, record.images)
        layout = self._header.image(name, record.images[name]["shape"])
        rows, columns = range(layout.shape[1]), range(layout.shape[2])
        return self._read_layout(layout, f"images/{name}", sample, rows, columns)

    def record(self, sample: str) -> dict[str, Any]:
        """Return the commit record of a sample.

        Parameters
        ----------
        sample : str
            A committed sample.

        Returns
        -------
        dict
            sample, index, committed (UTC), files, images, nonfinite, annotations, digest, ...

        Raises
        ------
        UnknownName, DamagedSample
            If the sample does not exist, or its record is damaged.
        """
        return self._record(sample).to_json()

    def fingerprint(self, sample: str) -> str:
        """Return a digest, 64 hex digits, that changes whenever data of `sample` would; see `Run.record`."""
        return self._record(sample).digest

    def files(self, sample: str) -> dict[str, int]:
        """Return path and bytes of each file of a sample but its commit record; see `Run.record`."""
        return {path: file.bytes for path, file in self._record(sample).files.items()}

    def check(self, sample: str) -> None:
        """Check quickly that the files of a sample are there, and that sizes and metadata agree.

        Parameters
        ----------
        sample : str
            A committed sample.

        Raises
        ------
        UnknownName
            If the sample does not exist.
        DamagedSample
            Naming sample and layer.
        DamagedRun
            If a metadata document of the run is not the one written at creation.
        """
        self._checker.check(self._record(sample))

    def spec(self, layer: str | LayerSpec) -> LayerSpec:
        """Return the layer of a name, or raise `UnknownName`; see `Run.layers`."""
        name = layer.name if isinstance(layer, LayerSpec) else layer
        if name not in self._header.layers:
            raise UnknownName("layer", name, self._header.layers)
        return self._header.layers[name]

    def step_group(self, layer: str | LayerSpec) -> int:
        """Return how many steps of a `layer` share a stored chunk, a good unit to read by; see `Run.spec`."""
        spec = self.spec(layer)
        kind = "scores" if spec.representation == "scores" else "query"
        return self._header.layout(spec, kind).chunk[1]

    def _record(self, sample: str) -> CommitRecord:
        if sample not in self._committed:
            remedy = "it is declared, but not committed yet" if sample in self._header.positions else None
            raise UnknownName("sample", sample, self._samples, remedy=remedy)
        return self._records.get(sample)


@contextmanager
def _damage(sample: str, layer: str) -> Iterator[None]:
    try:
        yield
    except (ShardError, DamagedRun) as error:
        raise DamagedSample(sample, layer, str(error)) from error


_HEADERS: dict[tuple[str, str], Header] = {}
"""Headers of unpickled runs, by path and id; `MAX_HEADERS` at most."""

MAX_HEADERS = 64


def _unpickle(location: Location, run_id: str, shown: bytes) -> Run:
    """Make a run that was pickled by another process."""
    key = location.url, run_id
    header = _HEADERS.get(key) or load_header(location)
    if header.run_id != run_id:
        raise DamagedRun(f"{location.url} is another run than a moment ago", remedy="start again")
    if key not in _HEADERS:
        if len(_HEADERS) >= MAX_HEADERS:
            _HEADERS.clear()
        _HEADERS[key] = header
    bits = np.unpackbits(np.frombuffer(shown, np.uint8), count=len(header.samples))
    return Run(location, header, tuple(compress(header.samples, bits)))
