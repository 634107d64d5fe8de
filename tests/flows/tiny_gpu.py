"""The tiny factory on a machine with GPUs by its own word alone: for the locks and processes of a sweep."""

from __future__ import annotations

from typing import Any

from i2am.flows.capture import load_pipeline
from tests.flows import tiny

load_pipeline.check_device = lambda device: None


def build(device: str, dtype: str, **arguments: Any) -> Any:
    return tiny.build("cpu", dtype, **arguments)
