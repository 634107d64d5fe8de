"""One wrapper for each function of somebody else's module, however many captures listen to it.

Captures may overlap, end in any order and run in several threads: the wrapper comes with the first listener
and leaves with the last.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

Listener: TypeAlias = Callable[..., None]
"""Called with the arguments of each call, before it is made; it must not raise."""

_lock = threading.RLock()
_wrappers: dict[tuple[int, str], _Wrapper] = {}


class _Wrapper:
    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        self.original = getattr(owner, name)
        self.own = name in vars(owner)
        self.listeners: list[Listener] = []

        def call(*args: Any, **kwargs: Any) -> Any:
            for listener in tuple(self.listeners):
                listener(*args, **kwargs)
            return self.original(*args, **kwargs)

        self.call = call

    def restore(self) -> None:
        if vars(self.owner).get(self.name) is not self.call:
            return  # somebody has put a function of their own in its place
        if self.own:
            setattr(self.owner, self.name, self.original)
        else:
            delattr(self.owner, self.name)


@contextmanager
def listening(owner: Any, name: str, listener: Listener) -> Iterator[None]:
    """Tell ``listener`` of every call of ``owner.name``, a module's function or an object's method."""
    key = id(owner), name
    with _lock:
        wrapper = _wrappers.get(key)
        if wrapper is None:
            wrapper = _wrappers[key] = _Wrapper(owner, name)
            setattr(owner, name, wrapper.call)
        wrapper.listeners.append(listener)
    try:
        yield
    finally:
        with _lock:
            wrapper.listeners.remove(listener)
            if not wrapper.listeners:
                del _wrappers[key]
                wrapper.restore()
