"""The samples of a study that are what was written: a cheap look at each, then its marginals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from i2am.analysis.events import Listener, Refusal, SampleRefused, StageStarted
from i2am.analysis.marginals.compute_missing import compute_missing_marginals
from i2am.analysis.output_directory import Timings
from i2am.storage.errors import DamagedSample, DamageError

if TYPE_CHECKING:
    from i2am.analysis.options import StudyOptions
    from i2am.storage.reading.run_collection import AnyRun


def sound_samples(
    runs: Sequence[tuple[AnyRun, StudyOptions]],
    names: Sequence[str],
    known: dict[str, str],
    emit: Listener,
    timings: Timings,
) -> tuple[tuple[str, ...], tuple[Refusal, ...]]:
    """Check samples, and make sure that their marginals are there.

    Parameters
    ----------
    runs
        Each holds all the samples; with the layers, and the place of the derived store.
    names
        The samples asked for.
    known
        Those of them that are known to be damaged, and why.
    tell, laps
        Told of the stages.

    Returns
    -------
    samples, refusals
        Those that are sound, in order; and the others, with the reason.

    Raises
    ------
    DamagedSample
        If none is sound.
    """
    damaged = dict(known)

    def left() -> list[str]:
        return [name for name in names if name not in damaged]

    emit(StageStarted("check", len(names)))
    for run, _ in runs:
        damaged |= damaged_samples(run, left())
    timings.end("check")
    for run, options in runs:
        damaged |= compute_missing_marginals(
            run, left(), options.layers, options.store, options.storage_options, emit
        )
    timings.end("marginals")
    for sample, reason in damaged.items():
        emit(SampleRefused(sample, reason))
    if not left():
        sample, reason = next(iter(damaged.items()))
        others = f"and so is every other sample asked for ({len(damaged)}): {reason}"
        raise DamagedSample(sample, None, others)
    return tuple(left()), tuple(Refusal(sample, reason) for sample, reason in damaged.items())


def damaged_samples(run: AnyRun, names: Sequence[str]) -> dict[str, str]:
    """Look at every sample cheaply.

    Parameters
    ----------
    run, names
        Samples that it holds.

    Returns
    -------
    dict
        Damaged samples and why.
    """
    damaged: dict[str, str] = {}
    for name in names:
        try:
            run.check(name)
        except DamageError as error:
            damaged[name] = str(error)
    return damaged
