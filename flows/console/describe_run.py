"""The facts of a run as plain data, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from i2am.storage.format.marginals_only import has_attention, is_left_out
from i2am.storage.reading.witness import summarise_witness

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun

_SHOWN_ELSEWHERE = {"digest", "metadata", "layers", "samples", "timesteps"}


def describe(run: AnyRun) -> dict[str, Any]:
    """What `i2am inspect --json` writes of a run, or of several as one; no array is read."""
    from i2am.storage.reading.run_collection import Runs, distinct_layers, members_of

    committed = set(run.samples)
    whole = has_attention(run.attrs)
    sizes = [
        size
        for sample in run.samples
        for path, size in run.files(sample).items()
        if whole or not is_left_out(path)
    ]
    witness = summarise_witness(run, run.samples)
    members = members_of(run) if isinstance(run, Runs) else ()
    return {
        "path": str(run.path),
        "run_id": run.run_id,
        "samples": {
            "declared": len(run.declared),
            "committed": len(run.samples),
            "missing": [sample for sample in run.declared if sample not in committed],
        },
        "steps": len(run.timesteps),
        "timesteps": list(run.timesteps),
        "images": list(run.images),
        "layers": [layer.to_json() for layer in distinct_layers(run)],
        "files": len(sizes),
        "bytes": sum(sizes),
        "witness": {
            "kernels": list(witness.kernels),
            "rows": witness.rows,
            "largest_difference": witness.largest_difference,
            "unwitnessed_layers": list(witness.unwitnessed),
            "summary": witness.words,
        },
        "provenance": {
            key: str(value)
            for key, value in run.attrs.items()
            if key not in _SHOWN_ELSEWHERE
            and isinstance(value, (str, int, float, bool))
            and len(str(value)) <= 200
        },
        "runs": [
            {"path": each.path, "run_id": each.run_id, "samples": len(each.samples)} for each in members
        ],
    }
