"""How much of the stored attention was compared with the model's attention kernel, from commit records."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from i2am.storage.format.commit_record import unwitnessed

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun


@dataclass(frozen=True, slots=True)
class WitnessSummary:
    """What the commit records of some samples say."""

    layers: int
    kernels: tuple[str, ...]
    rows: int
    largest_difference: float | None  # of a logit; None if nothing was compared
    unwitnessed: dict[str, int]  # layer to the samples in which it was not compared at every step

    @property
    def words(self) -> str:
        """All of it in one line."""
        if self.largest_difference is None:
            return "none of the stored attention was compared with the model's kernel"
        compared = (
            f"{self.rows} rows equal those of {', '.join(self.kernels)} within {self.largest_difference:.1e}"
        )
        unseen = f"{len(self.unwitnessed)} of {self.layers} layers unwitnessed at some step"
        return f"{compared}; {unseen}" if self.unwitnessed else compared


def summarise_witness(
    run: AnyRun, samples: Collection[str], layers: Collection[str] | None = None
) -> WitnessSummary:
    """Read the records of `samples`; only `layers` count, None for all."""
    layers = list(run.layers) if layers is None else layers
    kernels, rows, largest, unseen = set(), 0, None, dict.fromkeys(layers, 0)
    for sample in samples:
        record = run.record(sample)["witness"]
        for layer in unwitnessed(record, layers):
            unseen[layer] += 1
        for layer in layers:
            if (seen := record.get(layer)) is not None and seen["kernel"]:
                kernels.add(seen["kernel"])
                rows += seen["rows"]
                largest = max(largest or 0.0, seen["largest_difference"])
    counted = {layer: count for layer, count in unseen.items() if count}
    return WitnessSummary(len(layers), tuple(sorted(kernels)), rows, largest, counted)
