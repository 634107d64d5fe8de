"""Where a run came from: model, scheduler, weights and software, as the store records it."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from i2am.pipeline.timesteps import scheduler_of
from i2am.storage.format.signed_json import jsonable

_SOFTWARE = ("i2am", "torch", "diffusers", "transformers", "zarr", "numcodecs", "numpy")


def describe(pipe: Any) -> dict[str, Any]:
    """Model, scheduler, software and, where the weights are local files, their digests; JSON values."""
    origin = str(getattr(pipe, "name_or_path", "") or "")
    return {
        "model": Path(origin).name if origin else type(pipe).__name__,
        "pipeline_class": f"{type(pipe).__module__}.{type(pipe).__qualname__}",
        "scheduler": scheduler_facts(pipe),
        "software": {"python": platform.python_version(), **_versions()},
        "weights_sha256": _weights(Path(origin)) if origin else {},
    }


def scheduler_facts(pipe: Any) -> dict[str, Any] | None:
    """Class and configuration of the pipeline's scheduler, if it has one."""
    scheduler = scheduler_of(pipe)
    if scheduler is None:
        return None
    return {"class": type(scheduler).__name__, **_jsonable(dict(getattr(scheduler, "config", {})))}


def _versions() -> dict[str, str]:
    found = {}
    for package in _SOFTWARE:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _weights(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        return {}
    digests = {}
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb") as stream:
            digests[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def _jsonable(value: Any) -> Any:
    """``value`` without private entries, and with everything that JSON lacks turned into text."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items() if not str(key).startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return jsonable(value)
