"""I²AM: capture the reference attention of an image-to-image diffusion model once, ask the store forever.

The public names, listed in ``__init__.pyi`` and loaded when they are used.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

_lazy, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("i2am")
    return _lazy(name)
