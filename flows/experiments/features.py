"""Features of pictures by a model, from the derived stores beside the runs; what is missing is taken."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from i2am.flows.console.progress import Progress, emit
from i2am.flows.experiments.pictures import RGB, Picture
from i2am.storage.errors import InputError, MissingDependency
from i2am.storage.tools.feature_store import Features, FeatureStore

if TYPE_CHECKING:
    from i2am.pipeline.features.contract import FeatureModel

PART = 8
"""Batches that are stored together: an interruption loses no more."""

Pair = tuple[Picture, Picture]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Features to have: pictures or pairs by key, each with the place where its features belong."""

    name: str  # of the stage, for progress
    items: Mapping[str, tuple[Picture | Pair, str]]

    @property
    def stores(self) -> list[FeatureStore]:
        return [FeatureStore(path) for path in dict.fromkeys(path for _, path in self.items.values())]


def taken(model: FeatureModel, wanted: Wanted) -> Features:
    """Features of all that is wanted, by key."""
    from i2am.pipeline.features.contract import take

    known: Features = {}
    for store in wanted.stores:
        known |= store.read(model.id)
    by_place: dict[str, list[str]] = {}
    for key, (_, path) in wanted.items.items():
        if key not in known:
            by_place.setdefault(path, []).append(key)
    done, total = 0, sum(map(len, by_place.values()))
    for path, missing in by_place.items():
        store = FeatureStore(path)
        batches = take(model, ((key, _pixels(wanted.items[key][0])) for key in missing))
        while part := list(islice(batches, PART)):
            keys = [key for own, _ in part for key in own]
            values = np.concatenate([own for _, own in part])
            store.write(model.id, keys, values)
            known |= dict(zip(keys, values, strict=True))
            done += len(keys)
            emit(Progress(wanted.name, done, total, model.name))
    return known


def kept(name: str, wanted: Wanted) -> tuple[str, Features]:
    """The one model of a name that left features of all that is wanted, and these: without torch."""
    found: dict[str, Features] = {}
    for store in wanted.stores:
        for model in store.models():
            if model.rpartition("@")[0] == name:
                found[model] = found.get(model, {}) | store.read(model)
    whole = {model: features for model, features in found.items() if wanted.items.keys() <= features.keys()}
    if len(whole) == 1:
        return next(iter(whole.items()))
    if len(found) > 1:
        raise InputError(
            f"features of another model: {name!r}",
            expected="all images’ features of one model",
            got=", ".join(f"{len(features)} images of {model}" for model, features in sorted(found.items())),
            remedy="take all of them with one model, where torch is installed: pip install 'i2am[capture]'",
        )
    raise MissingDependency(
        f"features {name!r} are not all here, and taking them needs torch",
        remedy="pip install 'i2am[capture]', or run this once where it is installed",
    )


def similarity(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Cosine similarity of the features of two images; None where those of one are all 0."""
    length = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / length) if length > 0 else None


def can_take() -> bool:
    """Whether torch is here."""
    return importlib.util.find_spec("torch") is not None


def _pixels(item: Picture | Pair) -> RGB:
    return item.load() if isinstance(item, Picture) else np.stack([picture.load() for picture in item])
