"""One generation on its way into the store: from the denoiser's calls to committed samples."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol
from zlib import crc32

import torch
from numpy.typing import NDArray

from i2am.pipeline.adapters.contract import AnySite
from i2am.pipeline.adapters.region import Region
from i2am.pipeline.events import Listener, SampleDone, StepDone
from i2am.pipeline.recording.batch_rows import BatchSplitter, SampleAttention
from i2am.pipeline.recording.changes import StaticKeys, check_roles, check_steps, geometry_changes
from i2am.pipeline.recording.images import ImageLike, sides_of_canvas, to_uint8
from i2am.pipeline.recording.norms import Norms
from i2am.pipeline.recording.step_tracker import CallPosition, StepTracker
from i2am.pipeline.recording.witness import Expected, Part, Witness
from i2am.pipeline.taps.host_copies import Array, HostCopies
from i2am.pipeline.taps.projections import QueryKey
from i2am.pipeline.taps.value_flow import ValueFlow
from i2am.pipeline.timesteps import Timestep
from i2am.storage.errors import CaptureError, UnknownName
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.tile import Tile
from i2am.storage.writing.sink import Sink


@dataclass(slots=True)
class SampleHandle:
    """What the user holds inside ``with cap.sample(...)``: give it the result, and notes worth keeping."""

    id: str
    stored: bool = True  # False: only generated again, as part of its batch
    images: dict[str, NDArray[Any]] = field(default_factory=dict)  # uint8 [y, x, channel] by name
    notes: dict[str, Any] = field(default_factory=dict)  # JSON for the commit record: a seed, a prompt

    @property
    def generated(self) -> NDArray[Any] | None:
        """The generated image, uint8 [y, x, channel]; set it to any PIL image or array."""
        return self.images.get("generated")

    @generated.setter
    def generated(self, image: ImageLike) -> None:
        self.images["generated"] = to_uint8("generated", image)

    def annotate(self, notes: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Keep JSON values with the sample, in its commit record; names from outside come in a mapping."""
        self.notes.update(notes or {}, **more)


class CaptureTarget(Protocol):
    """Where a capture goes: a run in the store, or a probe that only looks at the geometry."""

    def __enter__(self) -> CaptureTarget: ...

    def __exit__(self, *error: Any) -> None: ...

    @property
    def declared(self) -> tuple[str, ...]: ...

    @property
    def missing(self) -> tuple[str, ...]: ...

    def is_committed(self, id: str) -> bool: ...

    def check_samples(self, ids: Sequence[str], stored: Collection[str]) -> None:
        """Refuse ids that cannot be captured, before anything is generated."""

    def prepare(
        self,
        specs: Sequence[LayerSpec],
        timesteps: Sequence[float],
        calls: Sequence[Sequence[str]],
        images: Mapping[str, NDArray[Any]],
    ) -> Mapping[str, LayerSpec]:
        """Create the run, or check that it has this geometry; return its layers."""

    def add_image(self, name: str, image: NDArray[Any]) -> None:
        """Declare an image of this shape, unless it is declared already."""

    def open_sample(self, id: str, sinks: ExitStack) -> Sink:
        """A sink for the sample; leaving ``sinks`` commits it, or undoes it after an error."""


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """What a capture keeps of every generation."""

    sites: Sequence[AnySite]  # the layers, in order
    splitter: BatchSplitter  # takes the kept roles and heads out of a layer's batch
    schedule: Callable[[Timestep], list[float]]  # all timesteps, given the first call's
    steps: Callable[[int], list[int]]  # indices to keep, given the number of steps
    new_tracker: Callable[[], StepTracker]  # for each generation
    interrupted: Callable[[], bool]  # whether the pipeline says that its generation was ended early
    value_norms: bool = False  # measure what values become, where the model lets it be measured
    region: Region | None = None  # of the model's picture, that is the reference
    text: bool = False  # keep the keys of words too


class Recording:
    """Follows one pipeline call and writes what is kept of it; nothing is committed before ``finish``."""

    def __init__(
        self,
        settings: CaptureSettings,
        handles: Sequence[SampleHandle],
        target: CaptureTarget,
        copies: HostCopies,
        listener: Listener,
    ) -> None:
        self._settings, self._handles, self._target = settings, tuple(handles), target
        self._copies, self._listener = copies, listener
        self._tracker = settings.new_tracker()
        self._schedule: list[float] = []
        self._kept_steps: list[int] = []
        self._call: CallPosition | None = None
        self._tile: Tile | None = None
        self._latents: torch.Tensor | None = None
        self._ended_steps = 0
        self._seen: set[str] = set()
        # Of the attention module that was seen last: what there is of its samples and layers.
        self._attention: Any = None
        self._arrived: dict[tuple[int, str], dict[str, Array]] = {}
        self._rows: dict[int, tuple[str, ...]] = {}
        self._roles_at: dict[int, set[str]] = {}  # kept step to the roles that its calls had
        self._specs: dict[str, LayerSpec] = {}
        self._static_keys = StaticKeys()
        self.norms = Norms()
        self._before_run: list[tuple[int, str, int, dict[str, Array]]] = []
        self._sinks: dict[int, Sink] | None = None
        self._seen_guidance = False
        self._open_sinks = ExitStack()
        self.witness = Witness(copies.submit, crc32(handles[0].id.encode()))
        self._started = time.perf_counter()
        self.thread = threading.get_ident()
        self.error: Exception | None = None

    @property
    def keeps_call(self) -> bool:
        """Whether something of the current denoiser call is kept."""
        call = self._call
        if call is None or call.step not in self._kept_steps:
            return False
        return call.rows is None or not set(call.rows).isdisjoint(self._settings.splitter.roles)

    def begin_call(
        self, now: Timestep, tile: Tile | None = None, label: str = "", latents: torch.Tensor | None = None
    ) -> None:
        """A call of the denoiser begins, at the scheduler's timestep ``now``."""
        if not self._schedule:
            self._schedule = self._settings.schedule(now)
            self._kept_steps = self._settings.steps(len(self._schedule))
        before = self._tracker.steps
        call = self._tracker.begin(now, self._schedule, tile, label)
        if call.step == before:
            self._end_steps(before)
        self._call, self._tile, self._latents = call, tile, latents
        self._seen.clear()
        self._attention = None
        self.norms.begin_call()

    def receive(self, layer: QueryKey) -> None:
        """Copy and store a layer's query and key, in the current call."""
        call, name = self._call, layer.site.name + layer.part
        if call is None or call.step not in self._kept_steps:
            return
        if name in self._seen:
            raise CaptureError(
                f"layer {name!r}: calls in a call of the denoiser at step {call.step}", expected="1",
                got="2 or more",
                remedy="leave the layer out with layers=, or use an adapter that tells its calls apart",
            )  # fmt: skip
        self._seen |= {name, layer.site.name}
        splitter, samples = self._settings.splitter, len(self._handles)
        rows = splitter.rows(layer, samples, call.rows)
        if call.rows is None and len(rows) > 1 and not self._seen_guidance:
            splitter.check_guidance(rows, samples, self._latents)
            self._seen_guidance = True
        index = 0 if self._tile is not None else call.index  # all tiles have the same rows
        if len(rows) >= len(self._rows.get(index, ())):  # a ControlNet may see the cond rows alone
            self._rows[index] = rows
        self._roles_at.setdefault(call.step, set()).update(rows)
        step = self._kept_steps.index(call.step)
        if layer.site.attention is not self._attention:
            self._attention, self._arrived = layer.site.attention, {}
        expected, others = Expected.of(layer), list[Part]()
        for part in splitter.split(layer, rows, samples, self._tile):
            if (first := self._specs.setdefault(part.spec.name, part.spec)) != part.spec:
                raise geometry_changes(first, part.spec, call.step)
            if not self._handles[part.sample].stored:
                others.append(Part(part.spec.name, part.sample, step, part.row, part.heads))
                continue
            put = self._collector(part, step, expected.add(part, step))
            for kind, tensor in part.arrays.items():
                self._copies.submit(tensor, partial(put, kind))
        if expected.parts:
            self.witness.expect(layer.site.attention, expected)
        self.norms.expect(name, [*expected.parts, *others])

    def receive_flow(self, flow: ValueFlow) -> None:
        """Copy and store what a layer's values become, in the current call."""
        for part, kind, tensor in self.norms.measure(flow, self._specs):
            if self._handles[part.sample].stored:  # others only show what the model lets be measured
                self._copies.submit(tensor, partial(self._put_norm, part, kind))

    def end_call(self) -> None:
        """The denoiser's call has ended: every layer must have been called."""
        keeps, call, self._call = self.keeps_call, self._call, None
        if call is None:
            return
        sites = self._settings.sites
        uncalled = [site.name for site in sites if site.name not in self._seen]
        if uncalled and keeps:
            raise CaptureError(
                f"step {call.step}: layers that the denoiser called",
                expected=f"{len(sites)}",
                got=f"{len(sites) - len(uncalled)}, not {', '.join(uncalled[:3])}",
                remedy="leave out with layers= or steps= what this model does not call"
                if self._specs
                else "the denoiser runs exported or traced code; capture it as it was before",
            )
        if self._tracker.step_complete:
            self._end_steps(self._tracker.steps)

    def finish(self) -> None:
        """Write the images and commit every sample, if the generation made every announced call."""
        if self.error is not None:
            raise self.error
        whole, announced = self._tracker.whole_steps, len(self._schedule)
        notes = check_steps(whole, announced, self._kept_steps, self._settings.interrupted())
        self._end_steps(whole)
        if self._sinks is None:
            raise RuntimeError("the run is open once a kept step has ended")
        self._copies.drain()
        self._cut_canvas()
        roles = {step: self._roles_at.get(step, set()) for step in self._kept_steps}
        notes |= check_roles(self._settings.splitter.roles, roles)
        if self._settings.value_norms:
            notes |= self.norms.notes()
        seconds = (time.perf_counter() - self._started) / len(self._handles)
        for index, sink in self._sinks.items():
            handle = self._handles[index]
            for name, image in handle.images.items():
                self._target.add_image(name, image)
                sink.put_image(name, image)
            sink.annotate({"seconds": round(seconds, 3), **notes, **handle.notes})
            sink.witness(self.witness.of_sample(index))
        self._open_sinks.close()
        for index in self._sinks:
            self._listener(SampleDone(self._handles[index].id, seconds))

    def abandon(self, error: BaseException) -> None:
        """Undo everything: after ``error`` the samples do not exist."""
        self._open_sinks.__exit__(type(error), error, error.__traceback__)

    def _end_steps(self, steps: int) -> None:
        """All calls of the first ``steps`` steps are known to be over."""
        if steps <= self._ended_steps:
            return
        self._ended_steps = steps
        if self._sinks is None and steps - 1 in self._kept_steps:
            self._open_target()
        self._listener(StepDone(tuple(handle.id for handle in self._handles), steps, len(self._schedule)))

    def _collector(self, part: SampleAttention, step: int, seen: Part) -> Callable[[str, Array], None]:
        """A function that stores a layer's arrays once all are there; before the run exists they are held."""
        spec, arrived = part.spec, self._arrived.setdefault((part.sample, part.spec.name), {})
        # Arrays arrive in the order in which they left: a query that is shared is there before its keys.
        owner = self._arrived[part.sample, spec.query_of] if spec.query_of else arrived
        wanted = len(part.arrays)

        def put(name: str, array: Array) -> None:
            arrived[name] = array
            if len(arrived) == wanted:
                rounding = self._static_keys.keep(part, arrived)
                arrived["query"] = owner["query"]
                self.witness.stored(seen, arrived["query"], arrived["key"], spec.logit_scale, rounding)
                self._put(part.sample, spec.name, step, arrived)

        return put

    def _put_norm(self, part: Part, kind: str, array: Array) -> None:
        self._put(part.sample, part.name, part.step, {kind: array})

    def _put(self, sample: int, layer: str, step: int, arrays: dict[str, Array]) -> None:
        if self._sinks is None:
            self._before_run.append((sample, layer, step, arrays))
        elif arrays := self.norms.declared(layer, arrays):
            self._sinks[sample].put(layer, step, **arrays, copy=False)

    def _cut_canvas(self) -> None:
        """Images of the whole canvas become its sides, as the layers' grids have them."""
        if self._settings.region is not None:
            spec = next(iter(self._specs.values()))
            for handle in self._handles:
                handle.images = sides_of_canvas(handle.images, self._settings.region, spec)

    def _open_target(self) -> None:
        self._copies.drain()
        calls = [self._rows[index] for index in sorted(self._rows)]
        for role in self._settings.splitter.roles:
            if not any(role in rows for rows in calls):
                raise UnknownName("role", role, [role for rows in calls for role in rows])
        timesteps = [self._schedule[i] for i in self._kept_steps]
        specs = [self.norms.completed(spec) for spec in self._specs.values()]
        self._cut_canvas()
        self.norms.stored = self._target.prepare(specs, timesteps, calls, self._handles[0].images)
        self._sinks = {
            index: self._target.open_sample(handle.id, self._open_sinks)
            for index, handle in enumerate(self._handles)
            if handle.stored
        }
        for held in self._before_run:
            self._put(*held)
        self._before_run.clear()
