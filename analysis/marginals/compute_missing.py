"""Fill the derived store: the marginals pass over a run, in parallel, only where something is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask

from i2am.analysis.dask_tasks import run_tasks
from i2am.analysis.events import Listener, StageAdvanced, StageStarted, ignore
from i2am.analysis.marginals.quantities import join_slabs, marginal_aggregation
from i2am.analysis.marginals.store import MarginalStore, StorePlace, open_marginals, store_in_folder
from i2am.analysis.reduction.aggregation import State
from i2am.analysis.reduction.reduce import Reduction, slabs
from i2am.storage.errors import DamageError
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.marginals_only import has_attention
from i2am.storage.name_patterns import matching_names
from i2am.storage.reading.run import Run
from i2am.storage.reading.run_collection import AnyRun, Runs, home_of, members_of


def compute_missing_marginals(
    run: AnyRun,
    samples: Sequence[str],
    layers: Sequence[str] | None = None,
    store: StorePlace = None,
    storage_options: Mapping[str, Any] | None = None,
    emit: Listener = ignore,
) -> dict[str, str]:
    """Compute the marginals that are missing; return damaged samples, and why.

    `layers` are names or patterns; `store` is a folder where there are several runs. An event follows each
    layer of a sample.
    """
    stores = {
        member.path: open_marginals(
            member, store_in_folder(store, member) if isinstance(run, Runs) else store, storage_options
        )
        for member in members_of(run)
    }
    names = matching_names("layer", layers, list(run.layers))
    entries = [(sample, layer) for sample in samples for layer in names]
    emit(StageStarted("marginals", len(entries)))
    homes = ((home_of(run, sample), sample, layer) for sample, layer in entries)
    tasks = (_entry_task(stores[home.path], home.layers[layer], sample) for home, sample, layer in homes)
    try:
        reasons = run_tasks(tasks, lambda done: emit(StageAdvanced("marginals", done, len(entries))))
    finally:
        for each in stores.values():
            each.remove_temporary_files()
    damaged: dict[str, str] = {}
    for (sample, _), reason in zip(entries, reasons, strict=True):
        if reason is not None:
            damaged.setdefault(sample, reason)
    return damaged


def _entry_task(store: MarginalStore, layer: LayerSpec, sample: str) -> Any:
    """A task that stores one entry, and returns the reason if the sample is damaged, else None."""
    parts = slabs(layer, range(len(store.run.timesteps)))
    if len(parts) == 1 or not has_attention(store.run.attrs) or store.has_seal(layer, sample):
        return dask.delayed(_whole_entry, pure=False)(store, layer, sample)
    states = [dask.delayed(_slab, pure=False)(store.run, layer, sample, part) for part in parts]
    return dask.delayed(_save, pure=False)(store, layer, sample, states)


def _whole_entry(store: MarginalStore, layer: LayerSpec, sample: str) -> str | None:
    try:
        store.load_or_compute(layer, sample)
    except DamageError as error:
        return str(error)
    return None


def _slab(run: Run, layer: LayerSpec, sample: str, steps: Sequence[int]) -> State | str:
    try:
        return Reduction(run, layer, sample, marginal_aggregation(run, layer, sample)).slab(steps)
    except DamageError as error:
        return str(error)


def _save(store: MarginalStore, layer: LayerSpec, sample: str, states: Sequence[State | str]) -> str | None:
    whole: list[State] = []
    for state in states:
        if isinstance(state, str):
            return state
        whole.append(state)
    store.save(layer, sample, join_slabs(store.run, layer, whole))
    return None
