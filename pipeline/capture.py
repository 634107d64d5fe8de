"""`capture`: tap a pipeline that the user already has, without changing what it generates."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from i2am.pipeline.adapters.contract import Adapter
from i2am.pipeline.adapters.region import RegionLike
from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.compilation import compiled_code_left_out, is_compiled, original
from i2am.pipeline.events import Event, Listener, ignore
from i2am.pipeline.recording.batch_rows import BatchSplitter
from i2am.pipeline.recording.hooks import PipelineHooks, all_sites
from i2am.pipeline.recording.images import ImageLike
from i2am.pipeline.recording.layer_selection import Layers, select_layers
from i2am.pipeline.recording.recording import CaptureSettings, CaptureTarget, Recording, SampleHandle
from i2am.pipeline.recording.run_target import RunTarget
from i2am.pipeline.recording.sample_images import by_name, give_images, warn_of_no_result
from i2am.pipeline.recording.step_tracker import StepTracker, as_layout, scheduler_progress
from i2am.pipeline.recording.weights import attention_fingerprint
from i2am.pipeline.taps.host_copies import HostCopies
from i2am.pipeline.timesteps import Timestep
from i2am.storage.errors import CaptureError, UnknownName
from i2am.storage.format.file_names import sample_ids
from i2am.storage.format.layer_spec import Representation
from i2am.storage.index_selection import Indices, listed_indices, select_indices
from i2am.storage.writing.declaration import checked_timesteps

STORE_OPTIONS = ("codec", "shard_bytes", "storage_options", "queue_bytes", "threads")
"""Arguments of :func:`i2am.create_run` that a capture passes on."""

COMPILED = (
    "the model is compiled: while a capture is open it runs as it was before torch.compile, more slowly; "
    "images may differ from compiled ones by rounding"
)
"""What a user is told, as a warning."""


def capture(
    pipe: Any,
    path: str | Path,
    samples: Iterable[str] | None = None,
    layers: Layers = None,
    steps: Indices = None,
    heads: Indices = None,
    adapter: str | Adapter | None = None,
    representation: Representation = "auto",
    roles: Sequence[str] = ("cond",),
    *,
    reference_region: RegionLike | None = None,
    timesteps: Iterable[float] | None = None,
    guidance: Sequence[Sequence[str]] | None = None,
    value_norms: bool = True,
    text: bool = False,
    attrs: Mapping[str, Any] | None = None,
    on_event: Listener = ignore,
    **store: Any,
) -> Capture:
    """Capture the reference attention of ``pipe`` into the run at ``path``.

    Parameters
    ----------
    pipe, path, samples
        A pipeline of a known family; the run, to be created or resumed; ids of all its samples, or None.
    layers, steps, heads
        What to keep: layers by name, pattern or number in the model's order; indices or slices.
    adapter, representation
        An adapter or its name, None: the one that matches; "auto", "factors" or "scores" for every layer.
    roles, value_norms, text
        Guidance roles to keep, others than "cond" as ``NAME@ROLE``. Whether to keep norms of values and of
        what the reference adds (the commit record names layers without), and keys of words (``NAME@text``).
    reference_region
        Side of the picture that is the reference: "left", "right", "top" or "bottom", or ``{"left": 0.4}`` of
        it, else half. Images of the whole picture are cut into the two sides.
    timesteps, guidance
        Of all steps, where the scheduler does not announce them; calls of a step, each a list of its row
        blocks, where unusual: ``[["uncond"], ["cond"]]``.
    attrs, on_event, **store
        JSON values for the run; a listener; ``codec``, ``storage_options``, ... of :func:`i2am.create_run`.

    Returns
    -------
    Capture
        A context manager; leaving it removes every hook, also after an error.

    Raises
    ------
    InputError
        Before anything is generated: unknown names, a run of another shape, a model without the layers.
    """
    ids, found = _checked(samples, store), find_adapter(pipe, adapter, reference_region)
    steps, heads = listed_indices("step", steps), listed_indices("head", heads)
    how = (representation, roles, timesteps, guidance, value_norms, text)
    settings = make_settings(pipe, found, layers, steps, heads, *how)
    facts = {**_facts(found, settings, steps, heads), **(attrs or {})}
    weights = partial(attention_fingerprint, pipe, found, [site.name for site in settings.sites])
    target = RunTarget(path, ids, pipe, facts, store, on_event, weights)
    return Capture(pipe, found, settings, target, on_event)


def make_settings(
    pipe: Any,
    adapter: Adapter,
    layers: Layers = None,
    steps: Indices = None,
    heads: Indices = None,
    representation: Representation = "auto",
    roles: Sequence[str] = ("cond",),
    timesteps: Iterable[float] | None = None,
    guidance: Sequence[Sequence[str]] | None = None,
    value_norms: bool = True,
    text: bool = False,
) -> CaptureSettings:
    """Resolve what to keep against the model; parameters and errors as in :func:`capture`."""
    layout = as_layout(guidance)
    order = adapter.calls(pipe)
    roles = (roles,) if isinstance(roles, str) else tuple(roles)
    kept = listed_indices("step", steps)
    announced = None if timesteps is None else checked_timesteps(timesteps)
    heads = listed_indices("head", heads)

    def schedule(first: Timestep) -> list[float]:
        if announced is not None:
            return [float(t) for t in announced]
        return adapter.schedule(pipe, first.value, first.tolerance)

    return CaptureSettings(
        select_layers(layers, all_sites(adapter, pipe, text)),
        BatchSplitter(pipe, adapter, roles, heads, representation),
        schedule=schedule,
        steps=lambda count: sorted(select_indices("step", kept, count)),
        new_tracker=lambda: StepTracker(layout, order, scheduler_progress(pipe)),
        interrupted=lambda: getattr(pipe, "interrupt", False) is True,
        value_norms=value_norms,
        region=adapter.region,
        text=text,
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
        self._pipe, self._adapter = pipe, adapter
        self._hooks = PipelineHooks(
            pipe, adapter, settings.sites, lambda: self._recording, settings.value_norms, settings.text
        )
        self._copies = HostCopies()
        self._recording: Recording | None = None
        self._denoiser, self._warned = original(adapter.denoiser(pipe)), False
        self._exits = ExitStack()

    def __enter__(self) -> Capture:
        with ExitStack() as exits:
            exits.enter_context(self._target)
            exits.callback(self._copies.close)
            exits.enter_context(compiled_code_left_out())
            exits.callback(self._denoiser.register_forward_pre_hook(self._on_call).remove)
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

    def _on_call(self, module: Any, inputs: Any) -> None:
        """The denoiser is called; if in no sample, say so once."""
        if self._recording is None and not self._warned:
            self._warned = True
            warnings.warn(
                "the pipeline ran outside cap.sample(...) while a capture is open: nothing of it is recorded",
                stacklevel=2,
            )

    @contextmanager
    def sample(
        self, id: str, *, images: Mapping[str, ImageLike] | None = None, **named: ImageLike
    ) -> Iterator[SampleHandle]:
        """Record one generation as the sample ``id``.

        Parameters
        ----------
        id
            A declared sample that is not committed yet.
        images
            Images to keep, by names of the user's own.
        **named
            Images to keep: ``source``, ``reference``, ``mask`` (white or True: painted), ``reference_mask``
            (the object in the reference), ...; files, PIL images, arrays, or tensors [channel, y, x]. A mask
            has the size of its picture.

        Yields
        ------
        SampleHandle
            Set its ``generated``. The sample is committed when the context ends without an error; one
            without a generated image is warned of.
        """
        given = by_name(images, named)
        with self.samples([id], images={name: [image] for name, image in given.items()}) as handles:
            yield handles[0]

    @contextmanager
    def samples(
        self,
        ids: Iterable[str],
        keep: Collection[str] | None = None,
        *,
        images: Mapping[str, Sequence[ImageLike]] | None = None,
        **named: Sequence[ImageLike],
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
            Empty: a trial of the model, of which nothing is stored.
        images, **named
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
        ids = sample_ids(ids)
        stored = set(ids if keep is None else sample_ids(keep, "keep"))
        self._target.check_samples(ids, stored)
        handles = [SampleHandle(id, stored=id in stored) for id in ids]
        give_images(handles, by_name(images, named))
        if is_compiled(self._adapter.denoiser(self._pipe)):
            warnings.warn(COMPILED, stacklevel=2)
        recording = Recording(self._settings, handles, self._target, self._copies, self._on_event)
        self._recording = recording
        try:
            with self._hooks.generation():
                yield handles
            recording.finish()
            warn_of_no_result(handles)
        except BaseException as error:
            recording.abandon(error)
            raise
        finally:
            self._recording = None


def _checked(samples: Iterable[str] | None, store: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The ids; a misspelt argument is refused now, and not at the first step of the model."""
    for option in store:
        if option not in STORE_OPTIONS:
            known = (*inspect.signature(capture).parameters, *STORE_OPTIONS)
            raise UnknownName("argument of capture", option, known)
    return None if samples is None else sample_ids(samples)


def _facts(adapter: Adapter, settings: CaptureSettings, steps: Indices, heads: Indices) -> dict[str, Any]:
    """What the run's attributes say about the capture."""
    names = [site.name for site in settings.sites]
    selection = {"layers": names, "steps": _jsonable(steps), "heads": _jsonable(heads)}
    region = {} if adapter.region is None else {"reference_region": adapter.region.to_json()}
    return {
        "adapter": adapter.name,
        **region,
        "selection": selection,
        "roles": list(settings.splitter.roles),
    }


def _jsonable(numbers: Indices) -> Any:
    """A selection as the store's attributes can hold it."""
    if numbers is None or isinstance(numbers, int):
        return numbers
    if isinstance(numbers, slice):
        return {"start": numbers.start, "stop": numbers.stop, "step": numbers.step}
    return list(numbers)
