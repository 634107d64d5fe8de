"""One generation on its way into the store: from the denoiser's calls to committed samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

from pipeline.adapters.contract import Site
from pipeline.events import Listener, SampleDone, StepDone
from pipeline.geometry import Attention, Split
from pipeline.images import ImageLike, to_uint8
from pipeline.transfer import Array, HostCopies
from storage import LayerSpec, Sink
from storage.errors import CaptureError


@dataclass(slots=True)
class SampleHandle:
    """What the user holds inside ``with cap.sample(...)``: give it the result, and notes worth keeping.

    Attributes
    ----------
    id
        The sample's id.
    images
        uint8 [y, x, channel] by name.
    notes
        JSON values for the commit record: a seed, a prompt.
    kept
        False where the sample is only generated again, as part of its batch, and not stored.
    """

    id: str
    kept: bool = True
    images: dict[str, NDArray[Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def generated(self) -> NDArray[Any] | None:
        """The generated image, uint8 [y, x, channel]; set it to any PIL image or array."""
        return self.images.get("generated")

    @generated.setter
    def generated(self, image: ImageLike) -> None:
        self.images["generated"] = to_uint8("generated", image)

    def annotate(self, **notes: Any) -> None:
        """Keep JSON values with the sample, in its commit record."""
        self.notes.update(notes)


class Store(Protocol):
    """What a recording needs of the run it writes into."""

    def prepare(
        self,
        specs: Sequence[LayerSpec],
        timesteps: Sequence[float],
        rows: Sequence[str],
        images: Mapping[str, NDArray[Any]],
    ) -> None:
        """Create the run, or check that it is the same one."""

    def add_image(self, name: str, image: NDArray[Any]) -> None:
        """Declare an image of this shape, unless it is declared already."""

    def open_sample(self, handle: SampleHandle, hold: ExitStack) -> Sink:
        """A sink for the sample; leaving ``hold`` commits it, or undoes it after an error."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a capture keeps of every generation.

    Attributes
    ----------
    sites
        Layers, in order.
    split
        Turns a projection's output into samples, roles and heads.
    schedule
        Timesteps of all calls, given that of the first one.
    steps
        Indices to keep, given the number of calls.
    """

    sites: Sequence[Site]
    split: Split
    schedule: Callable[[float], list[float]]
    steps: Callable[[int], list[int]]


class Recording:
    """Follows one pipeline call and writes what the plan keeps; nothing is committed before :meth:`finish`.

    Parameters
    ----------
    plan
        What to keep.
    handles
        The samples of this call, in the order of its rows.
    store
        Where to write.
    copies
        Carries tensors to the host.
    listener
        Told of every step and sample.
    """

    def __init__(
        self,
        plan: Plan,
        handles: Sequence[SampleHandle],
        store: Store,
        copies: HostCopies,
        listener: Listener,
    ) -> None:
        self._plan, self._handles, self._store = plan, tuple(handles), store
        self._copies, self._listener = copies, listener
        self._schedule: list[float] = []
        self._kept: list[int] = []
        self._call = -1
        self._seen: set[str] = set()
        self._early: list[tuple[Attention, int, dict[str, Array]]] = []
        self._sinks: dict[int, Sink] | None = None
        self._hold = ExitStack()
        self._started = time.perf_counter()

    def begin_call(self, timestep: float) -> None:
        """A call of the denoiser begins, at the scheduler's ``timestep``."""
        self._call += 1
        if self._call == 0:
            self._schedule = self._plan.schedule(timestep)
            self._kept = self._plan.steps(len(self._schedule))
        if self._call >= len(self._schedule) or self._schedule[self._call] != timestep:
            announced = self._schedule[self._call] if self._call < len(self._schedule) else "no further call"
            raise CaptureError(
                f"denoiser call {self._call}",
                expected=f"{announced} (of {len(self._schedule)} announced timesteps)",
                got=f"timestep {timestep:g}",
                remedy="make one pipeline call in each sample context; give timesteps=[...] where the "
                "scheduler does not announce them",
            )
        self._seen.clear()

    def receive(self, site: Site, query: torch.Tensor, key: torch.Tensor, grid: tuple[int, int]) -> None:
        """A layer's projections, [row, token, heads * head dim], in the current call."""
        if self._call not in self._kept:
            return
        if site.name in self._seen:
            raise CaptureError(
                f"layer {site.name!r}: calls in denoiser call {self._call}", expected="1", got="2 or more",
                remedy="leave the layer out with layers=, or use an adapter that tells its calls apart",
            )  # fmt: skip
        self._seen.add(site.name)
        step = self._kept.index(self._call)
        for part in self._plan.split(site, query, key, grid, len(self._handles)):
            if not self._handles[part.sample].kept:
                continue
            put = self._collector(part, step)
            self._copies.submit(part.query, partial(put, "query"))
            self._copies.submit(part.key, partial(put, "key"))

    def end_call(self) -> None:
        """The denoiser's call has ended."""
        if self._call in self._kept:
            silent = [site.name for site in self._plan.sites if site.name not in self._seen]
            if silent:
                raise CaptureError(
                    f"denoiser call {self._call}: captured layers",
                    expected=f"{len(self._plan.sites)}",
                    got=f"{len(self._seen)}, not {', '.join(silent[:3])}",
                    remedy="leave out with layers= what this model does not call",
                )
            if self._sinks is None:
                self._open()
        ids = tuple(handle.id for handle in self._handles)
        self._listener(StepDone(ids, self._call + 1, len(self._schedule)))

    def finish(self) -> None:
        """Write the images and commit every sample.

        Raises
        ------
        CaptureError
            If the generation did not make every announced call.
        """
        if self._sinks is None or self._call + 1 != len(self._schedule):
            raise CaptureError(
                "denoiser calls in the sample context",
                expected=f"{len(self._schedule) or 'at least 1'}", got=f"{self._call + 1}",
                remedy="run the whole pipeline call inside the context, and give timesteps=[...] where it "
                "makes fewer calls than its scheduler announces",
            )  # fmt: skip
        self._copies.drain()
        seconds = (time.perf_counter() - self._started) / len(self._handles)
        for index, sink in self._sinks.items():
            handle = self._handles[index]
            for name, image in handle.images.items():
                self._store.add_image(name, image)
                sink.put_image(name, image)
            sink.annotate(seconds=round(seconds, 3), **handle.notes)
        self._hold.close()
        for index in self._sinks:
            self._listener(SampleDone(self._handles[index].id, seconds))

    def abandon(self, error: BaseException) -> None:
        """Undo everything: after ``error`` the samples do not exist."""
        self._hold.__exit__(type(error), error, error.__traceback__)

    def _collector(self, part: Attention, step: int) -> Callable[[str, Array], None]:
        """Puts a layer's query and key once both have arrived; before the run exists, keeps them aside."""
        arrived: dict[str, Array] = {}

        def put(half: str, array: Array) -> None:
            arrived[half] = array
            if len(arrived) == 2:
                if self._sinks is None:
                    self._early.append((part, step, arrived))
                else:
                    self._sinks[part.sample].put(part.spec.name, step, **arrived, copy=False)

        return put

    def _open(self) -> None:
        self._copies.drain()
        specs = {part.spec.name: part.spec for part, _, _ in self._early}
        timesteps = [self._schedule[i] for i in self._kept]
        self._store.prepare(list(specs.values()), timesteps, self._plan.split.rows, self._handles[0].images)
        self._sinks = {
            index: self._store.open_sample(handle, self._hold)
            for index, handle in enumerate(self._handles)
            if handle.kept
        }
        for part, step, arrived in self._early:
            self._sinks[part.sample].put(part.spec.name, step, **arrived, copy=False)
        self._early.clear()
