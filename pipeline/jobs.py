"""A capture job: every missing sample of a run, in batches, each generated from its own seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from i2am.pipeline.capture import Capture
from i2am.pipeline.events import Waiting
from i2am.pipeline.recording.images import ImageLike
from i2am.storage.errors import (
    AlreadyExists,
    CaptureError,
    InputError,
    NoPermission,
    SampleBusy,
    StorageFull,
    StoreUnavailable,
)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds between looks at samples that other processes are writing."""

MAX_FAILURES = 3
"""Batches in a row that are loaded but not generated, after which a job gives up."""

FATAL = (StorageFull, NoPermission, StoreUnavailable, MemoryError)
"""Errors that the next sample would meet as well: they end the job."""

OnFailure: TypeAlias = Callable[[Sequence[str], Exception], None]
"""Called with the samples of a batch that failed, and why."""


class Task(Protocol):
    """One sample to generate: its id, the seed of its noise, its images and texts by name."""

    @property
    def id(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def images(self) -> Mapping[str, ImageLike]: ...

    @property
    def texts(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class Call:
    """How to call a pipeline.

    ``inputs`` maps an argument of the call to the name of the task's image or text that it takes;
    ``arguments`` are the other ones: steps, guidance scale, size.
    """

    inputs: Mapping[str, str]
    arguments: Mapping[str, Any]

    def __call__(self, pipe: Any, tasks: Sequence[Task]) -> Any:
        """The pipeline's ``images`` for ``tasks``, in order; each has its own noise, whatever its batch."""
        given = {argument: [_input(task, name) for task in tasks] for argument, name in self.inputs.items()}
        generators = [torch.Generator("cpu").manual_seed(task.seed) for task in tasks]
        single = {argument: batch[0] for argument, batch in given.items()} if len(tasks) == 1 else given
        generator = generators[0] if len(tasks) == 1 else generators
        return pipe(**single, **self.arguments, generator=generator).images


def run_job(
    cap: Capture,
    pipe: Any,
    load: Callable[[str], Task],
    call: Call,
    batch_size: int = 1,
    limit: int | None = None,
    *,
    only: Collection[str] | None = None,
    on_failure: OnFailure | None = None,
) -> int:
    """Generate and capture every sample of ``cap`` that is missing; the number of samples captured now.

    Any number of jobs may work on one run: samples that another process is writing are passed over and tried
    again at the end, until they exist or are given up. ``load`` makes a task of a sample id, for one batch at
    a time, so that few images are in memory. ``limit`` is the most samples to take, ``only`` those allowed.

    ``on_failure`` is called with the samples of a batch that could not be loaded or generated, and why; the
    job then goes on, unless the error is FATAL or MAX_FAILURES batches in a row were not generated. Without
    it the first error ends the job.
    """
    chosen = set(cap.declared if only is None else only)
    wanted = set([id for id in cap.missing if id in chosen][:limit])
    declared = cap.declared
    batches = [declared[start : start + batch_size] for start in range(0, len(declared), batch_size)]
    job = _Job(cap, pipe, load, call, wanted, _Failures(on_failure))
    job.run([ids for ids in batches if not wanted.isdisjoint(ids)])
    return job.count


@dataclass(slots=True)
class _Job:
    cap: Capture
    pipe: Any
    load: Callable[[str], Task]
    call: Call
    wanted: set[str]
    failures: _Failures
    count: int = 0

    def run(self, batches: Sequence[Sequence[str]]) -> None:
        """Generate batches; what other processes are writing is looked at again, with growing pauses."""
        pause = FIRST_PAUSE
        while batches:
            busy = [ids for ids in batches if not self.generate(ids)]
            if busy:
                self.cap.emit(Waiting(tuple(ids[0] for ids in busy)))
                time.sleep(pause)
            pause = FIRST_PAUSE if len(busy) < len(batches) else min(2 * pause, LONGEST_PAUSE)
            batches = busy
        self.failures.emit_deferred()

    def generate(self, ids: Sequence[str]) -> bool:
        """Generate a batch; False if another process is writing a part of it."""
        missing = [id for id in ids if id in self.wanted and not self.cap.is_committed(id)]
        if not missing:
            return True  # another process was quicker
        try:
            # The whole batch, also where a part of it is committed: other rows could change the last bits.
            tasks = [self.load(id) for id in ids]
        except Exception as error:
            if not self.failures.tolerated:
                raise
            self.failures.emit(missing, error)
            return True
        try:
            _generate(self.cap, self.pipe, self.call, tasks, missing)
        except (SampleBusy, AlreadyExists) as error:
            if isinstance(error, AlreadyExists) and not any(map(self.cap.is_committed, missing)):
                raise  # not one of these samples
            return False
        except Exception as error:
            if not self.failures.tolerated or isinstance(error, FATAL):
                raise
            self.failures.defer(missing, error)
        else:
            self.count += len(missing)
            self.failures.emit_deferred()
        return True


def _generate(cap: Capture, pipe: Any, call: Call, tasks: Sequence[Task], missing: Sequence[str]) -> None:
    names = sorted(set.intersection(*(set(task.images) for task in tasks)))
    images = {name: [task.images[name] for task in tasks] for name in names}
    with cap.samples([task.id for task in tasks], keep=missing, **images) as handles:
        for handle, task, image in zip(handles, tasks, call(pipe, tasks), strict=True):
            handle.generated = image
            handle.annotate(seed=task.seed, **task.texts)


class _Failures:
    """Tells a sample's fault from the machine's: a failed generation is emitted once another batch works."""

    def __init__(self, on_failure: OnFailure | None) -> None:
        self._on_failure = on_failure
        self._deferred: list[tuple[list[str], Exception]] = []

    @property
    def tolerated(self) -> bool:
        """Whether the job goes on after a failure."""
        return self._on_failure is not None

    def emit(self, ids: list[str], error: Exception) -> None:
        if self._on_failure is not None:
            self._on_failure(ids, error)

    def defer(self, ids: list[str], error: Exception) -> None:
        """Hold a batch that was not generated; MAX_FAILURES in a row end the job."""
        self._deferred.append((ids, error))
        if len(self._deferred) == MAX_FAILURES:
            raise CaptureError(
                f"{MAX_FAILURES} batches in a row failed, the last with sample {ids[0]!r}",
                got=f"{type(error).__name__}: {error}",
                remedy="mend the model or the machine, and run again: what is committed is kept",
            ) from error

    def emit_deferred(self) -> None:
        for ids, error in self._deferred:
            self.emit(ids, error)
        self._deferred.clear()


def _input(task: Task, name: str) -> Any:
    """A text, or an image as PIL image, for the pipeline."""
    from PIL import Image

    if name in task.texts:
        return task.texts[name]
    if name not in task.images:
        raise InputError(
            f"sample {task.id!r}", expected=f"an image or a text {name!r}",
            got=", ".join([*task.images, *task.texts]) or "nothing",
            remedy="add it to the data set, give it in call:, or say with inputs: what the pipeline takes",
        )  # fmt: skip
    image = task.images[name]
    return image if isinstance(image, Image.Image) else Image.fromarray(image)
