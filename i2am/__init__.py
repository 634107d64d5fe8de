"""I²AM: capture the reference attention of an image-to-image diffusion model once, ask the store forever.

The public names, listed in ``__init__.pyi`` and loaded when they are used.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

_lazy, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_CAPTURE = ("torch", "diffusers", "transformers", "safetensors")  # what the extra "capture" brings


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("i2am")
    try:
        return _lazy(name)
    except ModuleNotFoundError as error:
        from i2am.storage.errors import MissingDependency

        if error.name not in _CAPTURE:
            raise
        raise MissingDependency(
            f"i2am.{name} needs {error.name}", remedy="pip install 'i2am[capture]'"
        ) from error
