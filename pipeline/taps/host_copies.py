"""Carry tensors from the device to host arrays without holding up the device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Deliver: TypeAlias = Callable[[Array], None]


class HostCopies:
    """Ordered copies of tensors into host arrays.

    On a CUDA device a copy goes through a side stream into pinned memory, and a thread delivers the array
    once the copy has ended, so the model's own stream never waits. At most ``limit`` bytes are under way: a
    slow receiver slows the model down and never fills the memory. On the CPU the copy is made and delivered
    at once.
    """

    def __init__(self, limit: int = 256 << 20) -> None:
        self._limit, self._pending = limit, 0
        self._room = threading.Condition()
        self._queue: queue.SimpleQueue[tuple[torch.cuda.Event, torch.Tensor, Deliver] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._error: BaseException | None = None

    def submit(self, tensor: torch.Tensor, deliver: Deliver) -> None:
        """Copy ``tensor`` and hand the array, contiguous and its own, to ``deliver``.

        bfloat16, which numpy lacks, arrives as float32 with the same values. What an earlier ``deliver``
        raised is raised here.
        """
        self._raise()
        if tensor.device.type != "cuda":
            deliver(_array(tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)))
            return
        with self._room:
            self._room.wait_for(lambda: self._pending == 0 or self._pending + tensor.nbytes <= self._limit)
            self._pending += tensor.nbytes
        stream = self._streams.setdefault(tensor.device, torch.cuda.Stream(tensor.device))  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            tensor.record_stream(stream)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(stream)
        if self._thread is None:
            self._thread = threading.Thread(target=self._deliver_all, name="i2am-host-copies", daemon=True)
            self._thread.start()
        self._queue.put((copied, host, deliver))

    def drain(self) -> None:
        """Wait until everything submitted is delivered; raise what a delivery raised."""
        with self._room:
            self._room.wait_for(lambda: self._pending == 0)
        self._raise()

    def close(self) -> None:
        """Stop the thread after what is under way; unseen errors are dropped with their sample."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self._error = None

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _deliver_all(self) -> None:
        while (item := self._queue.get()) is not None:
            copied, host, deliver = item
            try:
                copied.synchronize()
                if self._error is None:
                    deliver(np.array(_array(host)))  # a copy: pinned memory goes back to its pool
            except BaseException as error:  # noqa: BLE001 - handed to the thread that submits
                self._error = error
            finally:
                with self._room:
                    self._pending -= host.nbytes
                    self._room.notify_all()


def _array(tensor: torch.Tensor) -> Array:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
