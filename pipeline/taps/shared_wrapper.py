"""One wrapper for each function of somebody else's module, however many captures listen to it.

Captures may overlap, end in any order and run in several threads: the wrapper comes with the first listener
and leaves with the last, and each listener is told of the calls of its own thread alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

Listener: TypeAlias = Callable[..., None]
"""Called with the arguments of each call, before it is made."""

_lock = threading.RLock()
_wrappers: dict[tuple[int, str], _Wrapper] = {}


class _Wrapper:
    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        self.original = getattr(owner, name)
        self.own = name in vars(owner)
        self.listeners: list[tuple[int, Listener]] = []

        def call(*args: Any, **kwargs: Any) -> Any:
            here = threading.get_ident()
            for thread, listener in tuple(self.listeners):
                if thread == here:
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
    """Tell ``listener`` of every call of ``owner.name`` that this thread makes."""
    key, entry = (id(owner), name), (threading.get_ident(), listener)
    with _lock:
        wrapper = _wrappers.get(key)
        if wrapper is None:
            wrapper = _wrappers[key] = _Wrapper(owner, name)
            setattr(owner, name, wrapper.call)
        wrapper.listeners.append(entry)
    try:
        yield
    finally:
        with _lock:
            wrapper.listeners.remove(entry)
            if not wrapper.listeners:
                wrapper.restore()
                del _wrappers[key]
