"""Whether an earlier study is up to date: its study.json says from what it was made."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2am.analysis.output_digests import changed_files, read_mark
from i2am.analysis.reduction.softmax import KERNEL_VERSION
from i2am.storage.errors import DamageError
from i2am.storage.reading.run_collection import members_of

if TYPE_CHECKING:
    from i2am.analysis.options import StudyOptions
    from i2am.storage.reading.run_collection import AnyRun

_PLACES = ("store", "storage_options")
"""Options that say where things are kept, not what they are."""


def study_inputs(run: AnyRun, names: Sequence[str], options: StudyOptions) -> dict[str, Any]:
    """Everything that a study depends on, as JSON types.

    A sample's fingerprint is None if its record is damaged; an aggregation stands with a digest of its code.
    """
    relevant = {name: value for name, value in asdict(options).items() if name not in _PLACES}
    return {
        "runs": [own.run_id for own in members_of(run)],
        "samples": {name: _fingerprint(run, name) for name in names},
        "options": json.loads(json.dumps(relevant, default=repr)),
        "aggregations": {name: _code(name) for name in options.aggregations},
        "software": {"i2am": _version(), "kernel": KERNEL_VERSION},
    }


def earlier_study(out: Path) -> dict[str, Any]:
    """What the study in a directory wrote about itself; empty if there is none, or none that can be read."""
    try:
        return read_mark(out / "study.json")
    except (OSError, ValueError):
        return {}


def new_samples(inputs: dict[str, Any], before: dict[str, Any]) -> tuple[str, ...]:
    """Samples that an earlier study did not have, or had with other data."""
    old = before.get("inputs")
    known = old.get("samples", {}) if isinstance(old, dict) and old.get("runs") == inputs["runs"] else {}
    return tuple(name for name, digest in inputs["samples"].items() if known.get(name) != digest)


def is_up_to_date(inputs: dict[str, Any], before: dict[str, Any], out: Path) -> bool:
    """Whether an earlier study is whole, left nothing out, and was made from the same."""
    if before.get("inputs") != inputs or before.get("refusals") or None in inputs["samples"].values():
        return False
    return next(changed_files(out, before), None) is None


def _fingerprint(run: AnyRun, name: str) -> str | None:
    try:
        return run.fingerprint(name)
    except DamageError:
        return None


def _code(name: str) -> str:
    """Digest of an aggregation's code: as it travels to workers, and the sources of its functions."""
    import cloudpickle

    from i2am.analysis.aggregations.registry import find

    found = find(name)
    digest = hashlib.sha256(cloudpickle.dumps(found))
    for function in (found.chunk, found.combine, found.finalize):
        module = inspect.getmodule(function)
        source = getattr(module, "__file__", None)
        if source is not None:
            digest.update(Path(source).read_bytes())
    return digest.hexdigest()


def _version() -> str:
    try:
        return version("i2am")
    except PackageNotFoundError:
        return "unknown"
