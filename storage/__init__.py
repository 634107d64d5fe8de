"""The store: format, writer, reader, commit, plan and verification. Knows no model and no map."""
from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazy import attach

if TYPE_CHECKING:
    from storage.errors import (
        AlreadyExists,
        CaptureError,
        ConfigError,
        DamagedRun,
        DamagedSample,
        DamageError,
        EmptyRun,
        I2AMError,
        InputError,
        MissingDependency,
        NewerFormat,
        NoAnswer,
        NoPermission,
        NotARun,
        NotFound,
        SampleBusy,
        ShapeMismatch,
        StorageFull,
        UnknownName,
    )
    from storage.spec import LayerSpec

_ERRORS = (
    "AlreadyExists", "CaptureError", "ConfigError", "DamageError", "DamagedRun", "DamagedSample", "EmptyRun",
    "I2AMError", "InputError", "MissingDependency", "NewerFormat", "NoAnswer", "NoPermission", "NotARun", "NotFound",
    "SampleBusy", "ShapeMismatch", "StorageFull", "UnknownName",
)

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        **dict.fromkeys(_ERRORS, "storage.errors"),
        "LayerSpec": "storage.spec",
    },
)
