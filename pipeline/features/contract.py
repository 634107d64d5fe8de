"""What a model of features is, and how features are taken: in batches of one size, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from i2am.storage.errors import CaptureError

Pixels: TypeAlias = NDArray[np.uint8]
"""An image [y, x, 3], or a pair of them [2, y, x, 3]."""

BATCH = 32
"""Images that a model sees at once, at most."""


@dataclass(frozen=True, slots=True)
class FeatureModel:
    """A model of features: `extract` makes (image, feature) of uint8 images [image, y, x, 3] of one size."""

    name: str
    fingerprint: str  # of all that its features depend on
    extract: Callable[[Pixels], Any]

    @property
    def id(self) -> str:
        """Name and fingerprint: where the features are kept."""
        return f"{self.name}@{self.fingerprint}"


def take(
    model: FeatureModel, images: Iterable[tuple[str, Pixels]]
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Keys and features (image, feature) of images with their keys, batch by batch."""
    width: int | None = None
    for batch in _batches(images):
        values = np.asarray(model.extract(np.stack([pixels for _, pixels in batch])))
        if values.ndim != 2 or len(values) != len(batch) or width not in (None, values.shape[1]):
            raise CaptureError(
                f"features of {model.name}",
                expected=f"shape ({len(batch)}, {width or 'features'}) for {len(batch)} images",
                got=f"shape {values.shape}",
                remedy="return one row of numbers for each image, always as many",
            )
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            raise CaptureError(
                f"features of {model.name}",
                expected="finite floats",
                got=f"{values.dtype} with {int((~np.isfinite(values)).sum())} that are not finite"
                if values.dtype.kind == "f"
                else str(values.dtype),
                remedy="correct the model or its weights",
            )
        width = values.shape[1]
        yield [key for key, _ in batch], values.astype(np.float32)


def _batches(images: Iterable[tuple[str, Pixels]]) -> Iterator[list[tuple[str, Pixels]]]:
    """Neighbours of one size together, up to BATCH."""
    batch: list[tuple[str, Pixels]] = []
    for key, pixels in images:
        if batch and (len(batch) == BATCH or batch[0][1].shape != pixels.shape):
            yield batch
            batch = []
        batch.append((key, pixels))
    if batch:
        yield batch


def digest(*parts: bytes) -> str:
    """Twelve hexadecimal digits that say which bytes these are."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:12]


def weights_fingerprint(module: torch.nn.Module, *facts: str) -> str:
    """Fingerprint of all weights and buffers of a module, and of what else its features depend on."""
    tensors = [
        f"{name} {tuple(tensor.shape)}".encode() + tensor.detach().cpu().contiguous().numpy().tobytes()
        for name, tensor in module.state_dict().items()
    ]
    return digest(*(fact.encode() for fact in facts), *tensors)
