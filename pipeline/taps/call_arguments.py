"""The arguments of a module's call, by the names of its signature."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from i2am.pipeline.taps.guard import Guard


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


class EncoderCalls:
    """Follows the calls of modules that run before the denoiser; they only read."""

    def __init__(self, modules: Sequence[nn.Module], guard: Guard = lambda callback: callback) -> None:
        self._modules, self._guard = tuple(modules), guard
        self._latest: dict[nn.Module, dict[str, Any]] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Register every hook; where one registration fails, the earlier ones are removed."""
        with ExitStack() as hooks:
            hooks.callback(self._latest.clear)
            for module in self._modules:
                hook = self._guard(self._on_call)
                hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    def take(self) -> dict[str, Any]:
        """What the adapter's ``spans`` are given of them; the denoiser's next call begins anew."""
        found = {"encoders": [self._latest.pop(module, None) for module in self._modules]}
        return found if self._modules else {}

    def _on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._latest[module] = call_arguments(module, args, kwargs)
