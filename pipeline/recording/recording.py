"""One generation on its way into the store: from the denoiser's calls to committed samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from numpy.typing import NDArray

from i2am.pipeline.adapters.contract import AnySite
from i2am.pipeline.events import Listener, SampleDone, StepDone
from i2am.pipeline.recording.guidance import Calls, Place
from i2am.pipeline.recording.images import ImageLike, to_uint8
from i2am.pipeline.recording.split import Attention, Split
from i2am.pipeline.taps.host_copies import Array, HostCopies
from i2am.pipeline.taps.projections import Tapped
from i2am.pipeline.timesteps import Moment
from i2am.storage.errors import CaptureError, UnknownName
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.tile import Tile
from i2am.storage.writing.sink import Sink


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
        calls: Sequence[Sequence[str]],
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
        Turns what a tap saw into samples, roles and heads.
    schedule
        Timesteps of all steps, given the first call's.
    steps
        Indices to keep, given the number of steps.
    calls
        Makes what tells steps apart, for one generation.
    """

    sites: Sequence[AnySite]
    split: Split
    schedule: Callable[[Moment], list[float]]
    steps: Callable[[int], list[int]]
    calls: Callable[[], Calls]


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
        self._calls = plan.calls()
        self._schedule: list[float] = []
        self._kept: list[int] = []
        self._place: Place | None = None
        self._tile: Tile | None = None
        self._settled = 0
        self._seen: set[str] = set()
        self._rows: dict[int, tuple[str, ...]] = {}
        self._specs: dict[str, LayerSpec] = {}
        self._early: list[tuple[Attention, int, dict[str, Array]]] = []
        self._sinks: dict[int, Sink] | None = None
        self._hold = ExitStack()
        self._started = time.perf_counter()

    @property
    def keeps(self) -> bool:
        """Whether the current call is one to keep."""
        place = self._place
        if place is None or place.step not in self._kept:
            return False
        return place.rows is None or not set(place.rows).isdisjoint(self._plan.split.roles)

    def begin_call(self, now: Moment, tile: Tile | None = None, label: str = "") -> None:
        """A call of the denoiser begins, at the scheduler's timestep ``now``."""
        if not self._schedule:
            self._schedule = self._plan.schedule(now)
            self._kept = self._plan.steps(len(self._schedule))
        before = self._calls.steps
        place = self._calls.begin(now, self._schedule, tile, label)
        if place.step == before:
            self._settle(before)
        self._place, self._tile = place, tile
        self._seen.clear()

    def receive(self, tapped: Tapped) -> None:
        """A layer's query and key, in the current call."""
        place, name = self._place, tapped.site.name + tapped.part
        if place is None or place.step not in self._kept:
            return
        if name in self._seen:
            raise CaptureError(
                f"layer {name!r}: calls in a call of the denoiser at step {place.step}", expected="1",
                got="2 or more",
                remedy="leave the layer out with layers=, or use an adapter that tells its calls apart",
            )  # fmt: skip
        self._seen |= {name, tapped.site.name}
        rows = self._plan.split.rows(tapped, len(self._handles), place.rows)
        call = 0 if self._tile is not None else place.index  # all tiles have the same rows
        if len(rows) >= len(self._rows.get(call, ())):  # a ControlNet may see the cond rows alone
            self._rows[call] = rows
        step = self._kept.index(place.step)
        for part in self._plan.split(tapped, rows, len(self._handles), self._tile):
            self._specs.setdefault(part.spec.name, part.spec)
            if not self._handles[part.sample].kept:
                continue
            put = self._collector(part, step)
            for name, tensor in part.arrays.items():
                self._copies.submit(tensor, partial(put, name))

    def end_call(self) -> None:
        """The denoiser's call has ended."""
        place, self._place = self._place, None
        if place is None:
            return
        silent = [site.name for site in self._plan.sites if site.name not in self._seen]
        wanted = place.rows is None or not set(place.rows).isdisjoint(self._plan.split.roles)
        if silent and wanted and place.step in self._kept:
            raise CaptureError(
                f"step {place.step}: layers that the denoiser called",
                expected=f"{len(self._plan.sites)}",
                got=f"{len(self._plan.sites) - len(silent)}, not {', '.join(silent[:3])}",
                remedy="leave out with layers= or steps= what this model does not call",
            )
        if self._calls.complete:
            self._settle(self._calls.steps)

    def finish(self) -> None:
        """Write the images and commit every sample.

        Raises
        ------
        CaptureError
            If the generation did not make every announced call.
        """
        if self._calls.finished():
            self._settle(self._calls.steps)
        if self._sinks is None or not self._calls.finished():
            raise CaptureError(
                "denoiser calls in the sample context",
                expected=f"{len(self._schedule) or 'at least 1'} steps", got=f"{self._calls.steps}",
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

    def _settle(self, steps: int) -> None:
        """All calls of the first ``steps`` steps are known to be over."""
        if steps <= self._settled:
            return
        self._settled = steps
        if self._sinks is None and steps - 1 in self._kept:
            self._open()
        self._listener(StepDone(tuple(handle.id for handle in self._handles), steps, len(self._schedule)))

    def _collector(self, part: Attention, step: int) -> Callable[[str, Array], None]:
        """Puts a layer's arrays once all have arrived; before the run exists, keeps them aside."""
        arrived: dict[str, Array] = {}
        wanted = len(part.arrays)

        def put(name: str, array: Array) -> None:
            arrived[name] = array
            if len(arrived) == wanted:
                if self._sinks is None:
                    self._early.append((part, step, arrived))
                else:
                    self._sinks[part.sample].put(part.spec.name, step, **arrived, copy=False)

        return put

    def _open(self) -> None:
        self._copies.drain()
        calls = [self._rows[index] for index in sorted(self._rows)]
        for role in self._plan.split.roles:
            if not any(role in rows for rows in calls):
                raise UnknownName("role", role, [role for rows in calls for role in rows])
        timesteps = [self._schedule[i] for i in self._kept]
        self._store.prepare(list(self._specs.values()), timesteps, calls, self._handles[0].images)
        self._sinks = {
            index: self._store.open_sample(handle, self._hold)
            for index, handle in enumerate(self._handles)
            if handle.kept
        }
        for part, step, arrived in self._early:
            self._sinks[part.sample].put(part.spec.name, step, **arrived, copy=False)
        self._early.clear()
