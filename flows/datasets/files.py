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
    """A set of samples.

    Parameters
    ----------
    entries
        By id, in order.
    first_seed
        Seed of the first sample, for those without their own: it goes up by one with each.
    size
        Rows and columns that images are resized to; None keeps them.

    Returns
    -------
    SampleSet
        The samples.
    """
    seeds = {
        id: first_seed + number if entry.seed is None else entry.seed
        for number, (id, entry) in enumerate(entries.items())
    }

    def load(id: str) -> SampleInput:
        """Read the images of one sample."""
        entry = entries[id]
        images = {name: resized(read_image(file, name), name, size) for name, file in entry.files.items()}
        return SampleInput(id, seeds[id], images, dict(entry.texts))

    return SampleSet(seeds, load)
