"""Filling the derived store: the marginals pass over a run, in parallel, only where something is missing.

A layer of a sample is one task where it is small, or where it seems to be there already; else one for each
slab of steps, and one that puts them together and writes them, so that a single sample keeps all workers
busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dask

from i2am.analysis.dask_tasks import run_tasks
from i2am.analysis.events import Listener, StageAdvanced, StageStarted
from i2am.analysis.marginals.quantities import declaration, named
from i2am.analysis.marginals.store import MarginalCache, open_cache, within
from i2am.analysis.reduction.aggregation import State
from i2am.analysis.reduction.reduce import reduce_slab, slabs
from i2am.storage.errors import DamageError
from i2am.storage.format.marginals_only import has_attention
from i2am.storage.name_patterns import matching_names
from i2am.storage.reading.run_collection import Runs, home_of, members_of

if TYPE_CHECKING:
    from i2am.analysis.options import StudyOptions
    from i2am.storage.format.layer_spec import LayerSpec
    from i2am.storage.reading.run import Run
    from i2am.storage.reading.run_collection import AnyRun


def fill_marginals(
    run: AnyRun, names: Sequence[str], options: StudyOptions, emit: Listener
) -> dict[str, str]:
    """Compute the marginals that are missing."""
    caches = {
        member.path: open_cache(
            member,
            within(options.store, member) if isinstance(run, Runs) else options.store,
            options.storage_options,
        )
        for member in members_of(run)
    }
    layers = matching_names("layer", options.layers, list(run.layers))
    entries = [(sample, layer) for sample in names for layer in layers]
    emit(StageStarted("marginals", len(entries)))
    homes = ((home_of(run, sample), sample, layer) for sample, layer in entries)
    tasks = (_entry(caches[home.path], home.layers[layer], sample) for home, sample, layer in homes)
    try:
        reasons = run_tasks(tasks, lambda done: emit(StageAdvanced("marginals", done, len(entries))))
    finally:
        for cache in caches.values():
            cache.tidy()
    damaged: dict[str, str] = {}
    for (sample, _), reason in zip(entries, reasons, strict=True):
        if reason is not None:
            damaged.setdefault(sample, reason)
    return damaged


def _entry(cache: MarginalCache, layer: LayerSpec, sample: str) -> Any:
    """A task that fills one entry; it gives the error's line if the sample is damaged, else None."""
    parts = slabs(layer, range(len(cache.run.timesteps)))
    if len(parts) == 1 or not has_attention(cache.run.attrs) or cache.sealed(layer, sample):
        return dask.delayed(_ensure, pure=False)(cache, layer, sample)
    states = [dask.delayed(_slab, pure=False)(cache.run, layer, sample, part) for part in parts]
    return dask.delayed(_save, pure=False)(cache, layer, sample, states)


def _ensure(cache: MarginalCache, layer: LayerSpec, sample: str) -> str | None:
    try:
        cache.ensure(layer, sample)
    except DamageError as error:
        return str(error)
    return None


def _slab(run: Run, layer: LayerSpec, sample: str, steps: Sequence[int]) -> State | str:
    try:
        return reduce_slab(run, layer, sample, declaration(run, layer, sample), steps)
    except DamageError as error:
        return str(error)


def _save(cache: MarginalCache, layer: LayerSpec, sample: str, states: Sequence[State | str]) -> str | None:
    whole: list[State] = []
    for state in states:
        if isinstance(state, str):
            return state
        whole.append(state)
    cache.save(layer, sample, named(cache.run, layer, whole))
    return None
