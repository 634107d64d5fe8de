"""I²AM: capture the reference attention of an image-to-image diffusion pipeline once, ask the store forever.

The front door: the public names of the four packages, loaded when they are used. Without the ``capture``
extra everything but ``capture`` works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.lazy import attach

if TYPE_CHECKING:
    pass

_STORAGE = (
    "AggregationError", "AlreadyExists", "CaptureError", "ConfigError", "DamageError", "DamagedRun",
    "DamagedSample", "EmptyRun", "I2AMError", "InputError", "LayerSpec", "MissingDependency", "NewerFormat",
    "NoAnswer", "NoPermission", "NotARun", "NotFound", "Plan", "Run", "RunWriter", "Runs", "SampleBusy",
    "ShapeMismatch", "Sink", "StorageFull", "StoreUnavailable", "Tile", "UnknownName", "VerifyReport",
    "compact", "create_run", "open_run", "open_runs", "plan", "prune", "resume_run", "verify",
)  # fmt: skip

_lazy, __dir__, __all__ = attach(
    __name__,
    {
        **dict.fromkeys(_STORAGE, "storage"),
        "Aggregation": "analysis.aggregation",
        "aggregate": "analysis.aggregated",
        "attribution_maps": "analysis.maps",
        "export": "analysis.exporting",
        "daam_maps": "analysis.daam",
        "imacs": "analysis.imacs",
        "capture": "pipeline.capturing",
        "compare": "analysis.compare_runs",
    },
)


def __getattr__(name: str) -> Any:
    """Load a public name from its package, or the version from the installed metadata."""
    if name == "__version__":
        from importlib.metadata import version

        return version("i2am")
    return _lazy(name)
