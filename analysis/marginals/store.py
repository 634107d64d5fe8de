"""The derived store of marginals, beside the run: ``NAME.marginals.zarr``.

Zarr v3, without compression; a group per layer holds one array (sample, step, head, token) for each
quantity, one sample a chunk, and ``seal`` (sample, quantity, byte): a digest over the values and over
everything they depend on (run, sample fingerprint, layer, quantity, protocol, kernel version). A value is
used only if its seal fits: whatever is absent, half written, damaged or stale is computed again. Two writers
of one entry write the same thing, each file whole (a temporary file, then a rename), so no lock is needed; a
writer that is killed leaves at most a temporary file, which `MarginalCache.tidy` removes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.marginals.memory_cache import recent
from i2am.analysis.marginals.quantities import Marginals, compute_marginals, quantities
from i2am.analysis.marginals.zarr_metadata import FORMAT, MARK, SEAL_BYTES, documents
from i2am.analysis.reduction.softmax import KERNEL_VERSION
from i2am.storage.errors import AlreadyExists, DamagedSample, DamageError, NoPermission
from i2am.storage.format.marginals_only import has_attention
from i2am.storage.locations.base import Location, TooLarge
from i2am.storage.locations.open import locate
from i2am.storage.reading.run_collection import Runs
from i2am.storage.writing.staging import sweep

if TYPE_CHECKING:
    from i2am.storage.format.layer_spec import LayerSpec
    from i2am.storage.reading.run import Run
    from i2am.storage.reading.run_collection import AnyRun

StorePlace = str | Literal[False] | None
"""Place of a derived store: a path or URL; None for beside the run; False to keep nothing."""


def default_path(path: str) -> str:
    """Where the derived store of a run lies unless named: ``a/run.zarr`` gives ``a/run.marginals.zarr``."""
    return path.rstrip("/").removesuffix(".zarr") + ".marginals.zarr"


def within(store: StorePlace, run: Run) -> StorePlace:
    """Place of one run's derived store, where the place given is a folder for those of several runs."""
    return f"{store.rstrip('/')}/{run.run_id}.marginals.zarr" if isinstance(store, str) else store


def store_of(run: AnyRun, store: StorePlace) -> StorePlace:
    """Place to name for one of two runs that are compared: several as one make out their own in a folder."""
    return store if isinstance(run, Runs) else within(store, run)


def open_cache(
    run: Run, store: StorePlace = None, storage_options: Mapping[str, Any] | None = None
) -> MarginalCache:
    """Choose the place of a run's derived store; nothing is read or written yet."""
    if store is False:
        return MarginalCache(run, None)
    return MarginalCache(run, locate(default_path(run.path) if store is None else store, storage_options))


@dataclass(frozen=True)
class MarginalCache:
    """Marginals of one run, computed once."""

    run: Run  # the run; open, read only
    place: Location | None  # where the derived store lies; None keeps nothing
    protocol: str = "corrected"  # part of the key

    def get(self, layer: LayerSpec, sample: str, name: str) -> NDArray[np.float32]:
        """Return one quantity (step, head, token), stored if its seal fits, else from the run."""
        key = self.key(layer, sample, name)
        return recent.get(key, lambda: self.ensure(layer, sample, (name,))[name])

    def likely(self, layer: LayerSpec, sample: str, name: str) -> bool:
        """Whether `get` will cost next to nothing, as far as that can be told without reading."""
        try:
            if self.key(layer, sample, name) in recent:
                return True
        except DamageError:  # a damaged record: whoever asks for the values is told
            return False
        if self.place is None or self.place.root is None:
            return False
        return self.sealed(layer, sample)

    def sealed(self, layer: LayerSpec, sample: str) -> bool:
        """Whether an entry has seals, whatever they say; one request where the derived store is remote."""
        path = f"{layer.name}/seal/c/{self.run.position(sample)}/0/0"
        return self.place is not None and self.place.size(path) is not None

    def key(self, layer: LayerSpec, sample: str, name: str) -> tuple[Hashable, ...]:
        """Everything that a quantity in memory depends on, and the place where it is kept."""
        place = "" if self.place is None else self.place.url
        return place, self.run.run_id, self.run.fingerprint(sample), layer, name, KERNEL_VERSION

    def ensure(self, layer: LayerSpec, sample: str, names: tuple[str, ...] | None = None) -> Marginals:
        """Make sure that an entry is in the derived store; return the quantities in `names`, or all."""
        wanted = tuple(quantities(self.run, layer)) if names is None else names
        stored = self._load(layer, sample, wanted)
        if stored is None:
            if not has_attention(self.run.attrs):
                raise self._lost(layer, sample)
            stored = compute_marginals(self.run, layer, sample)
            self.save(layer, sample, stored)
        return {name: stored[name] for name in wanted}

    def stored(self, layer: LayerSpec, sample: str) -> Marginals | None:
        """Every quantity of an entry if all are there and their seals fit, else None."""
        return self._load(layer, sample, tuple(quantities(self.run, layer)))

    def holds(self, layer: LayerSpec, sample: str) -> bool:
        """Whether every quantity of an entry is there, and its seal fits."""
        return self.stored(layer, sample) is not None

    def _lost(self, layer: LayerSpec, sample: str) -> DamagedSample:
        place = "nowhere" if self.place is None else self.place.url
        return DamagedSample(
            sample,
            layer.name,
            f"its marginals ({place}) are absent, not what was written, or of another version, and the run "
            "was exported without the attention to compute them from",
            remedy="export it again from the run that has its attention",
        )

    def tidy(self) -> None:
        """Remove what writers that were killed left; what others are writing stays."""
        if self.place is not None and self.place.root is not None:
            sweep(self.place.root, lambda _: ())

    def _seal(self, layer: LayerSpec, sample: str, name: str, values: bytes) -> bytes:
        key = {
            "run": self.run.run_id,
            # As the run itself names it, whatever label is put before it.
            "sample": self.run.attrs["samples"][self.run.position(sample)],
            "fingerprint": self.run.fingerprint(sample),
            "layer": layer.to_json(),
            "quantity": name,
            "protocol": self.protocol,
            "kernel": KERNEL_VERSION,
            "format": FORMAT,
        }
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=SEAL_BYTES)
        digest.update(values)
        return digest.digest()

    def _load(self, layer: LayerSpec, sample: str, names: tuple[str, ...]) -> Marginals | None:
        """Quantities whose seals all fit, or None."""
        if self.place is None:
            return None
        index = self.run.position(sample)
        sizes = quantities(self.run, layer)
        order = list(sizes)
        found: Marginals = {}
        try:
            seals = self.place.read(f"{layer.name}/seal/c/{index}/0/0", SEAL_BYTES * len(order))
            for name in names:
                most = 4 * len(self.run.timesteps) * layer.heads * sizes[name]
                values = self.place.read(f"{layer.name}/{name}/c/{index}/0/0/0", most)
                start = order.index(name) * SEAL_BYTES
                if seals[start : start + SEAL_BYTES] != self._seal(layer, sample, name, values):
                    return None
                shape = (len(self.run.timesteps), layer.heads, -1)
                found[name] = np.frombuffer(values, dtype="<f4").reshape(shape)
        except (FileNotFoundError, NotADirectoryError, TooLarge):
            return None
        return found

    def save(self, layer: LayerSpec, sample: str, values: Marginals) -> None:
        """Write all quantities of an entry, then their seals."""
        if self.place is None:
            return
        index = self.run.position(sample)
        names = list(quantities(self.run, layer))
        data = {name: np.ascontiguousarray(values[name], dtype="<f4").tobytes() for name in names}
        try:
            self._describe(self.place, layer)
            for name in names:
                self.place.write(f"{layer.name}/{name}/c/{index}/0/0/0", data[name])
            seals = b"".join(self._seal(layer, sample, name, data[name]) for name in names)
            self.place.write(f"{layer.name}/seal/c/{index}/0/0", seals)
        except PermissionError as error:
            raise NoPermission(
                f"the marginals store {self.place.url} cannot be written",
                got=str(error),
                remedy="name another place with store=..., or pass store=False to keep nothing",
            ) from error

    def read(self, path: str) -> bytes | None:
        """Return a file of the derived store, or None."""
        return None if self.place is None else _read(self.place, path)

    def _describe(self, place: Location, layer: LayerSpec) -> None:
        """Write the metadata that is not there yet, or that describes an older run."""
        for path, data in documents(self.run, layer).items():
            if _read(place, path) != data:
                if path == "zarr.json":
                    _check_ours(place)
                place.write(path, data)


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
        remedy="name another place with store=...",
    )
