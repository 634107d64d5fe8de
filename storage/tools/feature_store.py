"""Features of images, taken once by any model: the folder ``features/`` beside the runs.

::

    features/zarr.json                      marks the folder; patterns of runs pass over it
    features/<model>/<sha256>.npz           keys (n,), and values (n, feature) float32, of some images

A key is the digest of an image's pixels, or of a pair's; a folder is named by the model and its fingerprint.
Nothing is ever stale: another picture has another key, another model another folder. A part is named by the
SHA-256 of its bytes and counts only while it fits them, so what an interrupted job has written is kept.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from i2am.storage.errors import AlreadyExists, ShapeMismatch
from i2am.storage.format.file_names import sample_file, sample_of_file
from i2am.storage.format.signed_json import canonical
from i2am.storage.locations.base import Location
from i2am.storage.locations.open import locate
from i2am.storage.reading.run import Run

FOLDER = "features"
ROOT = "zarr.json"
MARK = canonical(
    {"zarr_format": 3, "node_type": "group", "attributes": {"i2am_features": {"format": 1}}}
)  # of no run: `i2am.open_runs` passes over it

Features = dict[str, NDArray[np.float32]]
"""Key to the features (feature,) of an image, or of a pair."""


def image_key(pixels: NDArray[np.uint8]) -> str:
    """Digest of an image [y, x, channel], grey or in colours."""
    shape = "x".join(map(str, pixels.shape))
    return hashlib.sha256(shape.encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def pair_key(first: str, second: str) -> str:
    """Key of a pair of images, in this order, from theirs."""
    return f"{first}-{second}"


def features_beside(run: Run) -> str:
    """Default place of the features of a run's images: ``a/run.zarr`` gives ``a/features``."""
    path = run.path.rstrip("/")
    return f"{path.rpartition('/')[0]}/{FOLDER}"


class FeatureStore:
    """Features by model and key at one place; nothing is read or written until asked for."""

    def __init__(self, path: str) -> None:
        self.place: Location = locate(path)

    def models(self) -> list[str]:
        """Ids of the models that have features here."""
        return [sample_of_file(name) for name in self.place.names("") if name not in (ROOT, ".staging")]

    def read(self, model: str) -> Features:
        """All features of a model; parts that are not what was written are passed over."""
        found: Features = {}
        folder = sample_file(model)
        for name in self.place.names(folder):
            data = self.place.read(f"{folder}/{name}")
            if name == f"{hashlib.sha256(data).hexdigest()}.npz":
                with (
                    suppress(ValueError, KeyError, OSError, BadZipFile),
                    np.load(io.BytesIO(data), allow_pickle=False) as part,
                ):
                    found.update(zip(part["keys"].tolist(), part["values"], strict=True))
        return found

    def write(self, model: str, keys: Sequence[str], values: NDArray[np.float32]) -> None:
        """Add the features (image, feature) of some images."""
        self._mark()
        buffer = io.BytesIO()
        np.savez(buffer, keys=np.asarray(keys, dtype=np.str_), values=values.astype("<f4"))
        data = buffer.getvalue()
        self.place.write(f"{sample_file(model)}/{hashlib.sha256(data).hexdigest()}.npz", data)

    def _mark(self) -> None:
        """Mark the folder before anything is put there; refuse one that holds something else."""
        if self.place.size(ROOT) is not None and self.place.read(ROOT) == MARK:
            return
        if any(not name.startswith(".") for name in self.place.names("")):
            raise AlreadyExists(
                f"{self.place.url} holds something else",
                expected="a folder of features, or nothing",
                remedy="name another place: --store FOLDER, store=...",
            )
        self.place.write(ROOT, MARK)


def rows(features: Mapping[str, NDArray[np.float32]], keys: Iterable[str]) -> NDArray[np.float32]:
    """Features (image, feature) of some keys; `ShapeMismatch` where they cannot be of one model."""
    found = [features[key] for key in keys]
    if len({len(each) for each in found}) > 1:
        sizes = sorted({len(each) for each in found})
        raise ShapeMismatch(
            "features of another model",
            expected="as many numbers for every image",
            got=" and ".join(map(str, sizes)),
            remedy="take all features with one model",
        )
    return np.stack(found)
