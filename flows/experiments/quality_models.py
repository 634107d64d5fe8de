"""The models of features and of LPIPS of an experiment on quality, and what they make of its images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2am.analysis.scores.bootstrap import CONFIDENCE
from i2am.flows.experiments.features import Wanted, can_take, kept, taken
from i2am.flows.experiments.pictures import Picture, Real
from i2am.flows.experiments.quality_entries import Entry
from i2am.storage.errors import InputError
from i2am.storage.tools.feature_store import Features, features_beside

if TYPE_CHECKING:
    from i2am.analysis.maps.question import Protocol
    from i2am.pipeline.features.contract import FeatureModel


@dataclass(frozen=True, slots=True)
class Options:
    """How quality is measured."""

    real: Real = None
    features: str = "inception"
    weights: Path | None = None
    lpips: bool | None = None  # None: where its weights are here
    group: str | None = None  # an annotation of the samples
    penalty: float = 3.0
    protocol: Protocol = "corrected"
    confidence: float = CONFIDENCE
    store: str | None = None  # a folder of features; None: beside each run
    device: str = "cpu"


class Models:
    """The models of features and of LPIPS, found before any image is read."""

    def __init__(self, asked: Options) -> None:
        self.asked = asked
        self.notes: list[str] = []
        self.features: FeatureModel | None = None
        self.lpips: FeatureModel | None = None
        if not can_take():
            return
        from i2am.pipeline.features.load import load_features
        from i2am.pipeline.features.lpips import load_lpips

        self.features = load_features(asked.features, asked.weights, asked.device)
        if asked.lpips is not False:
            try:
                self.lpips = load_lpips(asked.device)
            except InputError as error:
                if asked.lpips:
                    raise
                self.notes.append(f"LPIPS is not measured: {error}")

    def apply(self, entries: Sequence[Entry], real: Sequence[Picture]) -> tuple[str, Features, Features]:
        """Name of the features, the features of all images, and the distances of all pairs."""
        store = self.asked.store
        first = store or features_beside(entries[0].run)
        images: dict[str, Any] = {picture.key: (picture, first) for picture in real}
        pairs: dict[str, Any] = {}
        for entry in entries:
            place = store or features_beside(entry.run)
            for picture in (entry.generated, entry.truth):
                if picture is not None:
                    images.setdefault(picture.key, (picture, place))
            if entry.pair is not None:
                pairs[entry.pair[0]] = (entry.pair[1], place)
        wanted, distances = Wanted("features", images), Features()
        if self.lpips is not None:
            distances = taken(self.lpips, Wanted("LPIPS", pairs))
        if self.features is not None:
            return self.features.name, taken(self.features, wanted), distances
        with suppress(InputError):
            distances = kept("lpips", Wanted("LPIPS", pairs))[1]
        return self.asked.features, kept(self.asked.features, wanted)[1], distances
