"""Lazy re-exports (PEP 562): a package offers its public names and loads a module only when one is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attach(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the three module attributes that re-export names lazily.

    Parameters
    ----------
    package : str
        The re-exporting module's ``__name__``.
    names : mapping of str to str
        Public name to the dotted module that defines it.

    Returns
    -------
    getattr, dir, all
        To be bound to ``__getattr__``, ``__dir__`` and ``__all__`` of the package.

    Raises
    ------
    AttributeError
        From the returned ``getattr``, for a name that is not listed.
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(names[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return __getattr__, __dir__, sorted(names)
