"""Read the configuration of a capture, and make its paths absolute."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from i2am.flows.config.models import CaptureConfig
from i2am.storage.configuration.validate import Model
from i2am.storage.configuration.yaml_file import ENDINGS, load_config


def load_capture(path: str | Path, out: str | None = None) -> CaptureConfig:
    """Read the configuration of a capture and make its paths absolute.

    Paths in the file are relative to its folder; `out`, which replaces the file's, to the working directory.
    """
    config = load_config(path, CaptureConfig)
    base = Path(os.path.realpath(path)).parent
    source: Any = config.pipeline
    if source.kind == "pretrained":
        adapters = [
            adapter.model_copy(update={"location": _local(adapter.location, base)})
            for adapter in source.ip_adapters
        ]
        found: dict[str, Any] = {"location": _local(source.location, base), "ip_adapters": adapters}
        if source.quantization is not None and source.quantization.from_single_file is not None:
            file = {"from_single_file": _absolute(source.quantization.from_single_file, base)}
            found["quantization"] = source.quantization.model_copy(update=file)
        source = _absolute_paths(source, base).model_copy(update=found)
    if source.kind == "factory":
        source = source.model_copy(update={"folder": base})
    place = _absolute(config.out, base) if out is None else _absolute(out, Path.cwd())
    samples = _absolute_paths(config.samples, base)
    adapter = config.adapter
    if adapter is not None and adapter.endswith(ENDINGS):
        adapter = os.path.realpath(base / adapter)
    changes = {"out": place, "samples": samples, "pipeline": source, "adapter": adapter}
    return config.model_copy(update=changes)


def _absolute_paths(model: Model, base: Path) -> Model:
    """`model` with every path in it, and in the models it holds, read from `base`."""
    changes: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Path):  # realpath: a loop of links is an error of the reader
            changes[name] = Path(os.path.realpath(base / value.expanduser()))
        elif isinstance(value, BaseModel):
            changes[name] = _absolute_paths(value, base)
    return model.model_copy(update=changes)


def _local(location: str, base: Path) -> str:
    """A folder beside the configuration by its absolute path; a hub id as it is."""
    return os.path.realpath(base / location) if os.path.isdir(base / location) else location


def _absolute(location: str, base: Path) -> str:
    """An absolute path; a URL as it is."""
    return location if "://" in location else os.path.normpath(base / Path(location).expanduser())
