"""Compiled models: their compiled code is left out while a capture is open, and their parts keep their names.

A compiled graph calls no hooks, or has those that stood there when it was compiled.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

_WRAPPED = "_orig_mod"
"""Where ``torch.compile(module)`` keeps the module."""

_lock = threading.Lock()
_stances: list[ExitStack] = []  # one while captures are open
_captures = 0


@contextmanager
def compiled_code_left_out() -> Iterator[None]:
    """Run everything that is compiled, or would be, as it was written; nested and in any order."""
    global _captures
    with _lock:
        if _captures == 0:
            stance = ExitStack()
            stance.enter_context(torch.compiler.set_stance("force_eager"))
            _stances.append(stance)
        _captures += 1
    try:
        yield
    finally:
        with _lock:
            _captures -= 1
            if _captures == 0:
                _stances.pop().close()


def original(module: nn.Module) -> nn.Module:
    """The module that was given to ``torch.compile``, or ``module`` itself."""
    inner = getattr(module, _WRAPPED, None)
    return original(inner) if isinstance(inner, nn.Module) else module


def named_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As ``root.named_modules()`` of the model before it was compiled."""
    for name, module in original(root).named_modules():
        if original(module) is module:
            yield uncompiled_name(name), module


def uncompiled_name(path: str) -> str:
    """A module's or parameter's path in the model before it was compiled."""
    return ".".join(part for part in path.split(".") if part != _WRAPPED)


def is_compiled(root: nn.Module) -> bool:
    """Whether a model, or a part of it, has been given to ``torch.compile``."""
    return any(
        original(module) is not module
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module.forward, "get_compiler_config")
        for module in root.modules()
    )
