"""Callbacks inside a running model: only for the recording under way, and never the end of a generation."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeAlias

import torch

Guard: TypeAlias = Callable[[Callable[..., None]], Callable[..., None]]


def make_guard(active: Callable[[], bool], on_error: Callable[[Exception], None]) -> Guard:
    """Return what turns a callback into one that runs only while ``active``, and whose error is kept."""

    def guard(callback: Callable[..., None]) -> Callable[..., None]:
        @wraps(callback)
        def guarded(*args: Any, **kwargs: Any) -> None:
            if torch.compiler.is_compiling() or not active():  # of no compiled graph, in any thread
                return
            try:
                callback(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - raised when the sample closes
                on_error(error)

        return guarded

    return guard
