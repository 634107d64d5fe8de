"""The store: format, writer, reader, commit, plan and verification. Knows no model and no map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazy import attach

if TYPE_CHECKING:
    from storage.aside import Failure as Failure
    from storage.aside import failures as failures
    from storage.block import Block as Block
    from storage.commit_index import compact as compact
    from storage.create import create_run as create_run
    from storage.create import resume_run as resume_run
    from storage.errors import AggregationError as AggregationError
    from storage.errors import AlreadyExists as AlreadyExists
    from storage.errors import CaptureError as CaptureError
    from storage.errors import ConfigError as ConfigError
    from storage.errors import DamagedRun as DamagedRun
    from storage.errors import DamagedSample as DamagedSample
    from storage.errors import DamageError as DamageError
    from storage.errors import EmptyRun as EmptyRun
    from storage.errors import I2AMError as I2AMError
    from storage.errors import InputError as InputError
    from storage.errors import MissingDependency as MissingDependency
    from storage.errors import NewerFormat as NewerFormat
    from storage.errors import NoAnswer as NoAnswer
    from storage.errors import NoPermission as NoPermission
    from storage.errors import NotARun as NotARun
    from storage.errors import NotFound as NotFound
    from storage.errors import SampleBusy as SampleBusy
    from storage.errors import ShapeMismatch as ShapeMismatch
    from storage.errors import StorageFull as StorageFull
    from storage.errors import StoreUnavailable as StoreUnavailable
    from storage.errors import UnknownName as UnknownName
    from storage.opening import open_any as open_any
    from storage.opening import open_runs as open_runs
    from storage.planning import Plan as Plan
    from storage.planning import plan as plan
    from storage.pruning import prune as prune
    from storage.run import Run as Run
    from storage.run import open_run as open_run
    from storage.run_writer import RunWriter as RunWriter
    from storage.runs import AnyRun as AnyRun
    from storage.runs import Runs as Runs
    from storage.sink import Sink as Sink
    from storage.spec import LayerSpec as LayerSpec
    from storage.tile import Tile as Tile
    from storage.verification import VerifyReport as VerifyReport
    from storage.verification import verify as verify

_ERRORS = (
    "AlreadyExists",
    "AggregationError",
    "CaptureError",
    "ConfigError",
    "DamageError",
    "DamagedRun",
    "DamagedSample",
    "EmptyRun",
    "I2AMError",
    "InputError",
    "MissingDependency",
    "NewerFormat",
    "NoAnswer",
    "NoPermission",
    "NotARun",
    "NotFound",
    "SampleBusy",
    "ShapeMismatch",
    "StorageFull",
    "StoreUnavailable",
    "UnknownName",
)

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        **dict.fromkeys(_ERRORS, "storage.errors"),
        "Block": "storage.block",
        "LayerSpec": "storage.spec",
        "Tile": "storage.tile",
        "Failure": "storage.aside",
        "failures": "storage.aside",
        "Plan": "storage.planning",
        "AnyRun": "storage.runs",
        "Run": "storage.run",
        "RunWriter": "storage.run_writer",
        "Runs": "storage.runs",
        "Sink": "storage.sink",
        "compact": "storage.commit_index",
        "create_run": "storage.create",
        "open_any": "storage.opening",
        "open_run": "storage.run",
        "open_runs": "storage.opening",
        "plan": "storage.planning",
        "prune": "storage.pruning",
        "resume_run": "storage.create",
        "verify": "storage.verification",
        "VerifyReport": "storage.verification",
    },
)
