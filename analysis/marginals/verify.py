"""The marginals of a run that was exported without its attention: checked as the rest of its data is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from i2am.analysis.marginals.store import MarginalCache, default_path, open_cache
from i2am.analysis.marginals.zarr_metadata import documents
from i2am.storage.errors import DamageError
from i2am.storage.format.marginals_only import has_attention
from i2am.storage.tools.verify import Problem

if TYPE_CHECKING:
    from i2am.storage.reading.run import Run


def check_marginals(run: Run, storage_options: Mapping[str, Any] | None = None) -> list[Problem]:
    """Read every marginal of a run without attention, and compare it with its seal."""
    if has_attention(run.attrs):
        return []
    cache, place = open_cache(run, storage_options=storage_options), default_path(str(run.path))
    found = {str(problem.path): problem for problem in _documents(cache, place)}
    for sample in run.samples:
        for name, layer in run.layers.items():
            try:
                sound = cache.holds(layer, sample)
            except DamageError:  # a damaged record: said already
                break
            if not sound:
                what = "marginals are absent, not what was written, or of another version"
                path = f"{place}/{name}"
                found[f"{path}, {sample}"] = Problem(sample, name, path, what)
    return list(found.values())


def _documents(cache: MarginalCache, place: str) -> Iterator[Problem]:
    for name, layer in cache.run.layers.items():
        for path, data in documents(cache.run, layer).items():
            if cache.read(path) != data:
                owner = None if path == "zarr.json" else name
                yield Problem(None, owner, f"{place}/{path}", "is absent or not what was written")
