"""`capture`: tap a pipeline that the user already has, without changing what it generates."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from i2am.pipeline.adapters.contract import Adapter
from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.events import Event, Listener, ignore
from i2am.pipeline.recording.batch_rows import BatchSplitter
from i2am.pipeline.recording.hooks import PipelineHooks
from i2am.pipeline.recording.images import ImageLike, to_uint8
from i2am.pipeline.recording.layer_selection import Layers, select_layers
from i2am.pipeline.recording.recording import CaptureSettings, CaptureTarget, Recording, SampleHandle
from i2am.pipeline.recording.run_target import RunTarget
from i2am.pipeline.recording.step_tracker import StepTracker, as_layout, scheduler_progress
from i2am.pipeline.taps.host_copies import HostCopies
from i2am.pipeline.timesteps import Timestep
from i2am.storage.errors import CaptureError, InputError
from i2am.storage.format.layer_spec import Representation
from i2am.storage.index_selection import Indices, select_indices


def capture(
    pipe: Any,
    path: str | Path,
    samples: Sequence[str] | None = None,
    layers: Layers = None,
    steps: Indices = None,
    heads: Indices = None,
    adapter: str | Adapter | None = None,
    representation: Representation = "auto",
    roles: Sequence[str] = ("cond",),
    *,
    timesteps: Sequence[float] | None = None,
    guidance: Sequence[Sequence[str]] | None = None,
    attrs: Mapping[str, Any] | None = None,
    on_event: Listener = ignore,
    **store: Any,
) -> Capture:
    """Capture the reference attention of ``pipe`` into the run at ``path``.

    Parameters
    ----------
    pipe
        A pipeline of a known family.
    path
        The run, ``NAME.zarr``: created at the first denoiser call, or resumed where it exists.
    samples
        Ids of all samples the run shall hold; None: those an existing run declares.
    layers, steps, heads
        What to keep: layers by name, pattern, number or range in the model's order; indices, ranges or
        slices of steps and of heads.
    adapter, representation
        An adapter or its name, None: the one that matches; "auto", "factors" or "scores" for every layer.
    roles
        Guidance roles to keep; roles other than "cond" become layers ``NAME@ROLE``.
    timesteps
        Timesteps of all steps, where the scheduler does not announce them.
    guidance
        Calls of a step, each a list of its row blocks, where unusual: ``[["uncond"], ["cond"]]``.
    attrs, on_event
        JSON values to keep with the run; called with an event for each step and sample.
    **store
        Passed to :func:`i2am.create_run`: ``codec``, ``shard_bytes``, ``storage_options``.

    Returns
    -------
    Capture
        A context manager; leaving it removes every hook from the pipeline, also after an error.

    Raises
    ------
    InputError
        Before anything is generated: unknown names, a run of another shape, a model without the layers.
    """
    found = find_adapter(pipe, adapter)
    settings = make_settings(pipe, found, layers, steps, heads, representation, roles, timesteps, guidance)
    names = [site.name for site in settings.sites]
    selection = {"layers": names, "steps": _jsonable(steps), "heads": _jsonable(heads)}
    facts = {"adapter": found.name, "selection": selection, "roles": list(roles), **(attrs or {})}
    run = RunTarget(path, samples, pipe, facts, store, on_event)
    return Capture(pipe, found, settings, run, on_event)


def make_settings(
    pipe: Any,
    adapter: Adapter,
    layers: Layers = None,
    steps: Indices = None,
    heads: Indices = None,
    representation: Representation = "auto",
    roles: Sequence[str] = ("cond",),
    timesteps: Sequence[float] | None = None,
    guidance: Sequence[Sequence[str]] | None = None,
) -> CaptureSettings:
    """Resolve what to keep against the model; parameters and errors as in :func:`capture`."""
    layout = as_layout(guidance)
    order = adapter.calls(pipe)

    def schedule(first: Timestep) -> list[float]:
        if timesteps is not None:
            return [float(t) for t in timesteps]
        return adapter.schedule(pipe, first.value, first.tolerance)

    return CaptureSettings(
        select_layers(layers, adapter.sites(pipe)),
        BatchSplitter(pipe, adapter, roles, heads, representation),
        schedule=schedule,
        steps=lambda count: sorted(select_indices("step", steps, count)),
        new_tracker=lambda: StepTracker(layout, order, scheduler_progress(pipe)),
    )


class Capture:
    """The context that :func:`capture` returns; it holds hooks on the pipeline, and the run it fills."""

    def __init__(
        self,
        pipe: Any,
        adapter: Adapter,
        settings: CaptureSettings,
        target: CaptureTarget,
        on_event: Listener,
    ) -> None:
        self._settings, self._target, self._on_event = settings, target, on_event
        self._hooks = PipelineHooks(pipe, adapter, settings.sites, lambda: self._recording)
        self._copies = HostCopies()
        self._recording: Recording | None = None
        self._exits = ExitStack()

    def __enter__(self) -> Capture:
        with ExitStack() as exits:
            exits.enter_context(self._target)
            exits.callback(self._copies.close)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._exits.__exit__(*error)

    @property
    def declared(self) -> tuple[str, ...]:
        """Ids of all samples of the run."""
        return self._target.declared

    @property
    def missing(self) -> tuple[str, ...]:
        """Ids of the samples that are not committed yet, in declared order."""
        return self._target.missing

    def is_committed(self, id: str) -> bool:
        """Whether the sample ``id`` exists, looked up anew; cheaper than `missing` for one."""
        return self._target.is_committed(id)

    def emit(self, event: Event) -> None:
        """Pass an event on to the listener."""
        self._on_event(event)

    @contextmanager
    def sample(self, id: str, **images: ImageLike) -> Iterator[SampleHandle]:
        """Record one generation as the sample ``id``.

        Parameters
        ----------
        id
            A declared sample that is not committed yet.
        **images
            Images to keep: ``source``, ``reference``, ``mask`` (white or True: painted), ``reference_mask``
            (the object in the reference); PIL images or arrays.

        Yields
        ------
        SampleHandle
            Set its ``generated``. The sample is committed when the context ends without an error.
        """
        with self.samples([id], None, **{name: [image] for name, image in images.items()}) as handles:
            yield handles[0]

    @contextmanager
    def samples(
        self, ids: Sequence[str], keep: Collection[str] | None = None, **images: Sequence[ImageLike]
    ) -> Iterator[list[SampleHandle]]:
        """Record one pipeline call that generates several samples.

        Parameters
        ----------
        ids
            One id for each generated image, in the order of the pipeline's batch (several images of one
            prompt are several samples).
        keep
            The ids to store, None for all: the others are generated again and left as they are, so that a
            batch that was half committed can be completed with the same rows, hence the same bits.
        **images
            As for :meth:`sample`, a sequence each.

        Yields
        ------
        list of SampleHandle
            In the order of ``ids``. All are committed when the context ends without an error, or none is.

        Raises
        ------
        InputError
            If an id is unknown or committed already, or counts differ.
        CaptureError
            If the model is not called as its adapter and scheduler say.
        """
        if self._recording is not None:
            raise CaptureError(
                "sample context", expected="one at a time", got="a second one inside the first"
            )
        stored = set(ids if keep is None else keep)
        self._target.check_samples(ids, stored)
        handles = [SampleHandle(id, stored=id in stored) for id in ids]
        for name, batch in images.items():
            if len(batch) != len(handles):
                raise InputError(
                    f"images {name!r}", expected=f"{len(handles)}, one for each id", got=str(len(batch))
                )
            for handle, image in zip(handles, batch, strict=True):
                handle.images[name] = to_uint8(name, image)
        recording = Recording(self._settings, handles, self._target, self._copies, self._on_event)
        self._recording = recording
        try:
            with self._hooks.generation():
                yield handles
            recording.finish()
        except BaseException as error:
            recording.abandon(error)
            raise
        finally:
            self._recording = None


def _jsonable(numbers: Indices) -> Any:
    """A selection as the store's attributes can hold it."""
    if numbers is None or isinstance(numbers, int):
        return numbers
    if isinstance(numbers, slice):
        return {"start": numbers.start, "stop": numbers.stop, "step": numbers.step}
    return list(numbers)
