"""Samples whose images are files: what a layout finds becomes a set that is read one sample at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from i2am.flows.datasets.common import SampleInput, SampleSet, resized
from i2am.flows.datasets.images import read_image


@dataclass(frozen=True, slots=True)
class Entry:
    """Files and texts of one sample."""

    files: Mapping[str, Path]
    texts: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None


def from_files(entries: Mapping[str, Entry], first_seed: int, size: tuple[int, int] | None) -> SampleSet:
    """Samples by id, in order; those without a seed get `first_seed` plus their position."""
    seeds = {
        id: first_seed + number if entry.seed is None else entry.seed
        for number, (id, entry) in enumerate(entries.items())
    }

    def load(id: str) -> SampleInput:
        entry = entries[id]
        images = {name: resized(read_image(file, name), name, size) for name, file in entry.files.items()}
        return SampleInput(id, seeds[id], images, dict(entry.texts))

    return SampleSet(seeds, load)
