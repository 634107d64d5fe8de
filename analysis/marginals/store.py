"""The derived store of marginals, beside the run: ``NAME.marginals.zarr`` (METHODS.md).

A group per layer holds one array (sample, step, head, token) for each quantity, one sample a chunk, and
``seal`` (sample, quantity, byte), a digest. Files are written whole, and two writers of an entry write the
same bytes, so no lock is needed; a killed writer leaves at most what `remove_temporary_files` deletes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.marginals.memory_cache import shared_cache
from i2am.analysis.marginals.quantities import Marginals, compute_marginals, quantities
from i2am.analysis.marginals.zarr_metadata import FORMAT, MARK, SEAL_BYTES, same_node, zarr_documents
from i2am.analysis.reduction.softmax import KERNEL_VERSION
from i2am.storage.errors import AlreadyExists, DamagedSample, DamageError, NoPermission
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.marginals_only import has_attention
from i2am.storage.locations.base import Location, TooLarge
from i2am.storage.locations.open import locate
from i2am.storage.reading.run import Run
from i2am.storage.reading.run_collection import AnyRun, Runs
from i2am.storage.writing.staging import sweep

# Place of a derived store: a path or URL; None for beside the run; False to keep nothing.
StorePlace = str | Literal[False] | None


def marginals_path(path: str) -> str:
    """Default place of the derived store of a run: ``a/run.zarr`` gives ``a/run.marginals.zarr``."""
    return path.rstrip("/").removesuffix(".zarr") + ".marginals.zarr"


def store_in_folder(store: StorePlace, run: Run) -> StorePlace:
    """Place of one run's derived store, where `store` is a folder for those of several runs.

    A run that was exported without its attention has it beside itself, and nothing to make another from.
    """
    if not isinstance(store, str):
        return store
    return f"{store.rstrip('/')}/{run.run_id}.marginals.zarr" if has_attention(run.attrs) else None


def store_for(run: AnyRun, store: StorePlace) -> StorePlace:
    """Place of a run's marginals in a folder for any runs; several runs as one find theirs in it."""
    return store if isinstance(run, Runs) else store_in_folder(store, run)


def open_marginals(
    run: Run, store: StorePlace = None, storage_options: Mapping[str, Any] | None = None
) -> MarginalStore:
    """Choose the place of a run's derived store; nothing is read or written yet."""
    if store is False:
        return MarginalStore(run, None)
    if store is None:
        return MarginalStore(run, locate(marginals_path(run.path), storage_options), required=False)
    return MarginalStore(run, locate(store, storage_options))


@dataclass(frozen=True)
class MarginalStore:
    """Marginals of one run, each computed once."""

    run: Run
    place: Location | None  # None keeps nothing
    required: bool = True  # else a place that cannot be written, beside a read-only run, keeps nothing

    def get(self, layer: LayerSpec, sample: str, name: str) -> NDArray[np.float32]:
        """One quantity (step, head, token): from memory, else stored if its seal fits, else computed."""
        key = self.key(layer, sample, name)
        return shared_cache.get(key, lambda: self.load_or_compute(layer, sample, (name,))[name])

    def probably_stored(self, layer: LayerSpec, sample: str, name: str) -> bool:
        """Whether `get` will probably be quick, judged without reading any values."""
        try:
            if self.key(layer, sample, name) in shared_cache:
                return True
        except DamageError:  # a damaged commit record: the error is raised where the values are read
            return False
        return self.place is not None and self.place.root is not None and self.has_seal(layer, sample)

    def has_seal(self, layer: LayerSpec, sample: str) -> bool:
        """Whether an entry has seals, fitting or not; one request where the derived store is remote."""
        return self.place is not None and self.place.size(self._seal_path(layer, sample)) is not None

    def key(self, layer: LayerSpec, sample: str, name: str) -> tuple[Hashable, ...]:
        """Everything that a quantity in memory depends on, and the place where it is stored."""
        place = "" if self.place is None else self.place.url
        return place, self.run.run_id, self.run.fingerprint(sample), layer, name, KERNEL_VERSION

    def load_or_compute(
        self, layer: LayerSpec, sample: str, names: tuple[str, ...] | None = None
    ) -> Marginals:
        """The quantities `names`, or all; the whole entry is computed and stored if one is missing.

        Raises `DamagedSample` if the run's data is damaged, or was left out of an export, and `NoPermission`
        if a derived store that was asked for cannot be written.
        """
        stored = self.load(layer, sample, names)
        if stored is None:
            if not has_attention(self.run.attrs):
                raise DamagedSample(
                    sample,
                    layer.name,
                    f"its marginals ({'nowhere' if self.place is None else self.place.url}) are absent, not "
                    "what was written, or of another version, and the run was exported without the attention "
                    "to compute them from",
                    remedy="export it again from the run that has its attention",
                )
            stored = compute_marginals(self.run, layer, sample)
            self.save(layer, sample, stored)
        return {name: stored[name] for name in names or stored}

    def load(self, layer: LayerSpec, sample: str, names: tuple[str, ...] | None = None) -> Marginals | None:
        """The quantities `names`, or all, if every one is stored and its seal fits; else None."""
        if self.place is None:
            return None
        sizes = quantities(self.run, layer)
        order = list(sizes)
        shape = (len(self.run.timesteps), layer.heads)
        found: Marginals = {}
        try:
            seals = self.place.read(self._seal_path(layer, sample), SEAL_BYTES * len(order))
            for name in names or order:
                size = 4 * shape[0] * shape[1] * sizes[name]
                values = self.place.read(self._values_path(layer, sample, name), size)
                start = order.index(name) * SEAL_BYTES
                if seals[start : start + SEAL_BYTES] != self._seal(layer, sample, name, values):
                    return None
                found[name] = np.frombuffer(values, dtype="<f4").reshape(*shape, -1)
        except (FileNotFoundError, NotADirectoryError, TooLarge):
            return None
        return found

    def save(self, layer: LayerSpec, sample: str, values: Marginals) -> None:
        """Write all quantities of an entry, then their seals."""
        if self.place is None:
            return
        names = list(quantities(self.run, layer))
        data = {name: np.ascontiguousarray(values[name], dtype="<f4").tobytes() for name in names}
        try:
            self._write_documents(self.place, layer)
            for name in names:
                self.place.write(self._values_path(layer, sample, name), data[name])
            seals = b"".join(self._seal(layer, sample, name, data[name]) for name in names)
            self.place.write(self._seal_path(layer, sample), seals)
        except PermissionError as error:
            if not self.required:
                return
            raise NoPermission(
                f"the marginals store {self.place.url} cannot be written",
                got=str(error),
                remedy="name another place with store= or --cache; store=False keeps nothing",
            ) from error

    def remove_temporary_files(self) -> None:
        """Remove what writers that were killed left; the files of running writers stay."""
        if self.place is not None and self.place.root is not None:
            sweep(self.place.root, lambda _: ())

    def wrong_documents(self, layer: LayerSpec) -> list[str]:
        """Paths of the Zarr documents that are absent, or do not describe this layer's arrays."""
        documents = zarr_documents(self.run, layer)
        if self.place is None:
            return list(documents)
        return [path for path, data in documents.items() if not same_node(_read(self.place, path), data)]

    def _write_documents(self, place: Location, layer: LayerSpec) -> None:
        """Write the documents that are not there yet, or that describe an older run."""
        for path in self.wrong_documents(layer):
            if path == "zarr.json":
                _check_ours(place)
            place.write(path, zarr_documents(self.run, layer)[path])

    def _seal_path(self, layer: LayerSpec, sample: str) -> str:
        return f"{layer.name}/seal/c/{self.run.position(sample)}/0/0"

    def _values_path(self, layer: LayerSpec, sample: str, name: str) -> str:
        return f"{layer.name}/{name}/c/{self.run.position(sample)}/0/0/0"

    def _seal(self, layer: LayerSpec, sample: str, name: str, values: bytes) -> bytes:
        key = {
            "run": self.run.run_id,
            # The sample's name in its own run: among several runs it may have a label in front.
            "sample": self.run.attrs["samples"][self.run.position(sample)],
            "fingerprint": self.run.fingerprint(sample),
            "layer": layer.to_json(),
            "quantity": name,
            "protocol": "corrected",
            "kernel": KERNEL_VERSION,
            "format": FORMAT,
        }
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=SEAL_BYTES)
        digest.update(values)
        return digest.digest()


def _read(place: Location, path: str) -> bytes | None:
    try:
        return place.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _check_ours(place: Location) -> None:
    """Refuse a place that holds anything but a derived store, whose root document is written first."""
    others = [name for name in place.names("") if not name.startswith(".")]
    root = _read(place, "zarr.json")
    if (root is None and not others) or (root is not None and MARK.encode() in root):
        return
    raise AlreadyExists(
        f"{place.url} holds something else",
        expected="a marginals store, or nothing",
        remedy="name another place with store= or --cache",
    )
