"""Finding damaged samples: a cheap look at each, then its marginals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from i2am.analysis.events import Listener, SampleRefused, StageStarted
from i2am.analysis.marginals.compute_missing import compute_missing_marginals
from i2am.analysis.marginals.store import StorePlace
from i2am.analysis.output_directory import Timings
from i2am.storage.errors import DamagedSample, DamageError

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun


def split_damaged(
    runs: Sequence[tuple[AnyRun, StorePlace]],
    names: Sequence[str],
    known: Mapping[str, str],
    layers: Sequence[str] | None,
    storage_options: Mapping[str, Any] | None,
    emit: Listener,
    timings: Timings,
) -> tuple[tuple[str, ...], tuple[SampleRefused, ...]]:
    """Check samples that every run holds, and compute their marginals; return the undamaged and the damaged.

    `runs` come with their store of marginals; `known` are samples that are known to be damaged, and why. If
    all are damaged, `DamagedSample` is raised.
    """
    damaged = dict(known)

    def left() -> list[str]:
        return [name for name in names if name not in damaged]

    emit(StageStarted("check", len(names)))
    for run, _ in runs:
        damaged |= find_damaged(run, left())
    timings.end("check")
    for run, store in runs:
        damaged |= compute_missing_marginals(run, left(), layers, store, storage_options, emit)
    timings.end("marginals")
    refused = tuple(SampleRefused(sample, reason) for sample, reason in damaged.items())
    for refusal in refused:
        emit(refusal)
    if not left():
        others = f"and so is every other sample asked for ({len(damaged)}): {refused[0].reason}"
        raise DamagedSample(refused[0].sample, None, others)
    return tuple(left()), refused


def find_damaged(run: AnyRun, names: Sequence[str]) -> dict[str, str]:
    """Look at every sample cheaply; return the damaged ones, and why."""
    damaged: dict[str, str] = {}
    for name in names:
        try:
            run.check(name)
        except DamageError as error:
            damaged[name] = str(error)
    return damaged
