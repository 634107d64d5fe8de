"""The marginals of a run that was exported without its attention: checked as the rest of its data is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from i2am.analysis.marginals.store import marginals_path, open_marginals
from i2am.storage.errors import DamageError
from i2am.storage.format.marginals_only import has_attention
from i2am.storage.reading.run import Run
from i2am.storage.tools.verify import Problem


def check_marginals(run: Run, storage_options: Mapping[str, Any] | None = None) -> list[Problem]:
    """Compare every marginal of a run without attention with its seal, and its Zarr documents."""
    if has_attention(run.attrs):
        return []
    store, place = open_marginals(run, storage_options=storage_options), marginals_path(str(run.path))
    problems: dict[str, Problem] = {}
    for name, layer in run.layers.items():
        for path in store.wrong_documents(layer):
            owner = None if path == "zarr.json" else name
            what = "is absent or not what was written"
            problems[path] = Problem(None, owner, f"{place}/{path}", what)
    for sample in run.samples:
        for name, layer in run.layers.items():
            try:
                valid = store.load(layer, sample) is not None
            except DamageError:  # a damaged commit record, which `verify` of the run reports
                break
            if not valid:
                what = "marginals are absent, not what was written, or of another version"
                problems[f"{name}, {sample}"] = Problem(sample, name, f"{place}/{name}", what)
    return list(problems.values())
