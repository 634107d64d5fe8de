"""The arguments of a module's call, by the names of its signature."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def call_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positional and named arguments of a forward call, by name."""
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    extra = bound.pop("kwargs", {})
    return {**bound, **extra}


def with_argument(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A forward call's arguments with another ``value`` of one of them, given the way it was."""
    if name in kwargs:
        return args, {**kwargs, name: value}
    place = list(inspect.signature(module.forward).parameters).index(name)
    return (*args[:place], value, *args[place + 1 :]), kwargs
