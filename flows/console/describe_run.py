"""The facts of a run as plain data, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from i2am.storage.format.marginals_only import has_attention

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun


def describe(run: AnyRun) -> dict[str, Any]:
    """Collect what a run holds without reading any of its arrays.

    Parameters
    ----------
    run
        An open run, or several as one.

    Returns
    -------
    dict
        JSON-ready: ``path``, ``run_id``, ``samples`` (declared, committed, missing), ``steps``,
        ``timesteps``, ``images``, ``layers``, ``bytes`` and ``files`` of the committed samples,
        ``provenance`` (short texts), ``runs``
        (path, run_id and samples of each, where there are several).
    """
    from i2am.storage.reading.run_collection import Runs, distinct_layers, members_of

    committed = set(run.samples)
    whole = has_attention(run.attrs)
    sizes = [
        [size for path, size in run.files(sample).items() if whole or not path.startswith("attention/")]
        for sample in run.samples
    ]
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
        "files": sum(map(len, sizes)),
        "bytes": sum(map(sum, sizes)),
        "provenance": _provenance(run.attrs),
        "runs": [
            {"path": own.path, "run_id": own.run_id, "samples": len(own.samples)}
            for own in (members_of(run) if isinstance(run, Runs) else ())
        ],
    }


def _provenance(attrs: dict[str, Any]) -> dict[str, str]:
    """Short facts about where the run comes from: single values, without what is shown elsewhere."""
    elsewhere = {"digest", "metadata", "layers", "samples", "timesteps"}
    return {
        key: str(value)
        for key, value in attrs.items()
        if key not in elsewhere and isinstance(value, (str, int, float, bool)) and len(str(value)) <= 200
    }
