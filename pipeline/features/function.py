"""Features by a user's ``module:function``, from uint8 images [image, y, x, 3] to [image, feature]."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from i2am.pipeline.features.contract import FeatureModel, digest
from i2am.pipeline.foreign_errors import as_capture_error
from i2am.storage.errors import CaptureError, NotFound, UnknownName


def load_function(name: str) -> FeatureModel:
    """The function of ``module:function``; what it makes of three fixed images belongs to its fingerprint."""
    module_name, _, function_name = name.partition(":")
    module = _imported(module_name, name)
    function = getattr(module, function_name, None)
    if not callable(function):
        own = ((key, getattr(value, "__module__", None)) for key, value in vars(module).items())
        known = [key for key, home in own if home == module_name and not key.startswith("_")]
        raise UnknownName(f"function in {module_name}", function_name, known)

    def extract(images: Any) -> Any:
        with as_capture_error(f"features {name!r}", "correct the function"):
            return np.asarray(function(images))

    return FeatureModel(name, _fingerprint(name, module, extract), extract)


def _fingerprint(name: str, module: ModuleType, extract: Any) -> str:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    together = extract(images)
    alone = [extract(images[row : row + 1]) for row in range(3)]
    if together.shape[:1] == (3,) and all(each.shape == (1, *together.shape[1:]) for each in alone):
        difference = np.abs(together - np.concatenate(alone)).max(initial=0)
        if difference > 1e-3 * np.abs(together).max(initial=0):
            raise CaptureError(
                f"features {name!r}",
                expected="the same numbers of an image whenever it comes, and in any batch",
                got=f"differences up to {difference:.2g}",
                remedy="put the model into evaluation mode, and draw no random numbers",
            )
    source = Path(module.__file__).read_bytes() if module.__file__ else b""
    return digest(name.encode(), source, together.tobytes())


def _imported(module_name: str, name: str) -> ModuleType:
    """Import a module, with the working directory first."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        with as_capture_error(f"features {name!r}: importing {module_name}", "correct the module"):
            return importlib.import_module(module_name)
    except CaptureError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name == module_name.partition(".")[0]:
            raise NotFound(
                f"features {name!r}: no module {module_name!r}", remedy=f"it is looked for in {here} too"
            ) from None
        raise
    finally:
        sys.path.remove(here)
