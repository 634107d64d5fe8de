"""Runs whose samples are named RUN/SAMPLE, for several runs that share ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from i2am.storage.errors import DamagedSample
from i2am.storage.format.commit_record import CommitRecord
from i2am.storage.reading.run import Run


class LabelledRun(Run):
    """A run whose samples are named LABEL/SAMPLE."""

    def __init__(self, run: Run, label: str) -> None:
        self.__dict__.update(run.__dict__)
        self._run = run
        self._label = f"{label}/"
        self._samples = tuple(self._label + sample for sample in run.samples)
        self._declared = tuple(self._label + sample for sample in run.declared)
        self._committed = frozenset(self._samples)

    def __reduce__(self) -> tuple[Any, ...]:
        return LabelledRun, (self._run, self._label.removesuffix("/"))

    @property
    def declared(self) -> tuple[str, ...]:
        """Ids of all samples that the run shall have, labelled."""
        return self._declared

    def position(self, sample: str) -> int:
        """Return the index of a declared sample; see `Run.position`."""
        return self._run.position(sample.removeprefix(self._label))

    def _record(self, sample: str) -> CommitRecord:
        if sample not in self._committed:
            return super()._record(sample)  # raises an error with the labelled name
        try:
            return self._run._record(sample.removeprefix(self._label))
        except DamagedSample as error:
            raise DamagedSample(sample, error.layer, error.what) from error


def run_labels(paths: Sequence[str]) -> list[str]:
    """Return the name of each run without ``.zarr``, with as many parent folders as make the names differ."""
    parts = [path.rstrip("/").removesuffix(".zarr").split("/") for path in paths]
    used = [1] * len(parts)
    while True:
        found = ["/".join(part[-many:]) for part, many in zip(parts, used, strict=True)]
        count = Counter(found)
        longer = [
            min(many + (count[name] > 1), len(part))
            for part, many, name in zip(parts, used, found, strict=True)
        ]
        if longer == used:
            return found
        used = longer
