"""How far changed images are from the unchanged one: in features, and by LPIPS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.drawing.images import rgb
from i2am.flows.experiments.features import similarity
from i2am.storage.errors import InputError

if TYPE_CHECKING:
    from i2am.pipeline.features.contract import FeatureModel

Image = NDArray[np.uint8]

Distances = dict[str, float | None]
"""From one image to another, by the id of the model; None where features are all 0."""


@dataclass(frozen=True, slots=True)
class DistanceModels:
    """The models that measure distances beside pixels; both None: there are none."""

    features: FeatureModel | None = None
    lpips: FeatureModel | None = None

    @property
    def ids(self) -> set[str]:
        """Of all models."""
        return {model.id for model in (self.features, self.lpips) if model is not None}

    def measure_from(self, original: Image) -> Callable[[Sequence[Image]], list[Distances]]:
        """What measures the distances of images from this one, whose features are taken once."""
        first, base = rgb(original), np.empty(0)
        if self.features is not None:
            base = _taken(self.features, [first])[0]

        def measure(images: Sequence[Image]) -> list[Distances]:
            others = [rgb(image) for image in images]
            found: list[Distances] = [{} for _ in others]
            if self.features is not None:
                for own, values in zip(found, _taken(self.features, others), strict=True):
                    alike = similarity(base, values)
                    own[self.features.id] = None if alike is None else max(0.0, 1 - alike)
            if self.lpips is not None:
                pairs = _taken(self.lpips, [np.stack([first, other]) for other in others])
                for own, (value,) in zip(found, pairs, strict=True):
                    own[self.lpips.id] = float(value)
            return found

        return measure


def load_distances(features: str | None, weights: Path | None, lpips: bool, device: str) -> DistanceModels:
    """Load what is asked for, from weights on this machine; `InputError` where they are not here."""
    if weights is not None and features is None:
        raise InputError("weights", expected="features that they belong to", remedy="name them: --features")
    from i2am.pipeline.features.load import load_features
    from i2am.pipeline.features.lpips import load_lpips

    return DistanceModels(
        None if features is None else load_features(features, weights, device),
        load_lpips(device) if lpips else None,
    )


def _taken(model: FeatureModel, images: Sequence[Image]) -> NDArray[np.float64]:
    """Features (image, feature)."""
    from i2am.pipeline.features.contract import take

    parts = [values for _, values in take(model, (("", image) for image in images))]
    return np.concatenate(parts).astype(np.float64)
