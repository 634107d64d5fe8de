"""A capture job: every missing sample of a run, in batches, each generated from its own seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from i2am.pipeline.capture import Capture
from i2am.pipeline.events import Waiting
from i2am.pipeline.foreign_errors import as_capture_error
from i2am.pipeline.recording.images import ImageLike, to_uint8
from i2am.storage.errors import (
    AlreadyExists,
    CaptureError,
    I2AMError,
    InputError,
    NoPermission,
    SampleBusy,
    StorageFull,
    StoreUnavailable,
)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds between looks at samples that other processes are writing."""

MAX_FAILURES = 3
"""Batches in a row that are loaded but not generated, after which the model is tried with something else."""

MAX_UNKNOWN = 30
"""Such batches after which a job gives up where nothing has ever worked, not even the model alone."""

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

    ``inputs`` maps an argument of the call to the name of the task's image or text that it takes, or to the
    names of several; ``arguments`` are the other ones: steps, guidance scale, size.
    """

    inputs: Mapping[str, str | Sequence[str]]
    arguments: Mapping[str, Any]

    def __call__(self, pipe: Any, tasks: Sequence[Task]) -> Any:
        """The pipeline's ``images`` for ``tasks``, in order; each has its own noise, whatever its batch."""
        given = {
            argument: [_inputs(task, names) for task in tasks] for argument, names in self.inputs.items()
        }
        generators = [torch.Generator("cpu").manual_seed(task.seed) for task in tasks]
        single = {argument: batch[0] for argument, batch in given.items()} if len(tasks) == 1 else given
        generator = generators[0] if len(tasks) == 1 else generators
        with as_capture_error(
            f"the pipeline failed with sample {tasks[0].id!r}",
            "correct call:, give samples: a size: that the model takes, or mend the model",
        ):
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
    deadline: float = math.inf,
) -> int:
    """Generate and capture every sample of ``cap`` that is missing; the number of samples captured now.

    Any number of jobs may work on one run: samples that another process is writing are passed over and tried
    again at the end, until they exist or are given up, or none of them has been for ``deadline`` seconds:
    `SampleBusy`. ``load`` makes a task of a sample id, for one batch at
    a time, so that few images are in memory. ``limit`` is the most samples to take, ``only`` those allowed.

    ``on_failure`` is called with the samples of a batch that could not be loaded or generated, and why; the
    job then goes on, unless the error is FATAL, or the model no longer works with what it worked with before
    (tried after MAX_FAILURES batches in a row). Without it the first error ends the job.
    """
    chosen = set(cap.declared if only is None else only)
    wanted = set([id for id in cap.missing if id in chosen][:limit])
    declared = cap.declared
    batches = [declared[start : start + batch_size] for start in range(0, len(declared), batch_size)]
    job = _Job(cap, pipe, load, call, wanted, on_failure, batches, deadline)
    job.run([ids for ids in batches if not wanted.isdisjoint(ids)])
    return job.count


@dataclass(slots=True)
class _Job:
    cap: Capture
    pipe: Any
    load: Callable[[str], Task]
    call: Call
    wanted: set[str]
    on_failure: OnFailure | None
    batches: Sequence[Sequence[str]]  # all of the run
    deadline: float
    count: int = 0
    good: Sequence[str] = ()  # a batch that worked
    failed: list[tuple[list[str], Exception]] = field(default_factory=list)  # since then

    def run(self, batches: Sequence[Sequence[str]]) -> None:
        """Generate batches; what other processes are writing is looked at again, with growing pauses."""
        pause, since = FIRST_PAUSE, monotonic()
        while batches:
            busy = [ids for ids in batches if not self.generate(ids)]
            if len(busy) < len(batches):
                pause, since = FIRST_PAUSE, monotonic()
            if busy:
                self.cap.emit(Waiting(tuple(ids[0] for ids in busy)))
                if monotonic() - since >= self.deadline:
                    raise self.still_busy(busy)
                sleep(pause)
            pause, batches = min(2 * pause, LONGEST_PAUSE), busy
        if self.failed:
            self.tell_samples_from_machine(last=True)

    def still_busy(self, busy: Sequence[Sequence[str]]) -> SampleBusy:
        more = f" and {len(busy) - 1} more" if len(busy) > 1 else ""
        return SampleBusy(
            f"other processes hold the batch of sample {busy[0][0]!r}{more}",
            expected=f"one of them to be done within {self.deadline:g} s",
            got="none",
            remedy="end what hangs, and run again: what is committed is kept; deadline: allows more time",
        )

    def generate(self, ids: Sequence[str]) -> bool:
        """Generate a batch; False if another process is writing a part of it."""
        missing = [id for id in ids if id in self.wanted and not self.cap.is_committed(id)]
        if not missing:
            return True  # another process was quicker
        try:
            # The whole batch, also where a part of it is committed: other rows could change the last bits.
            tasks = [self.load(id) for id in ids]
        except Exception as error:
            if self.on_failure is None:
                raise
            self.on_failure(missing, error)
            return True
        try:
            _generate(self.cap, self.pipe, self.call, tasks, missing)
        except (SampleBusy, AlreadyExists) as error:
            if isinstance(error, AlreadyExists) and not any(map(self.cap.is_committed, missing)):
                raise  # not one of these samples
            return False
        except Exception as error:
            if self.on_failure is None or isinstance(error, FATAL):
                raise
            self.failed.append((missing, error))
            if len(self.failed) % MAX_FAILURES == 0:
                self.tell_samples_from_machine()
        else:
            self.count += len(missing)
            self.good = ids
            self.emit_failed()
        return True

    def tell_samples_from_machine(self, last: bool = False) -> None:
        """Emit what failed if the model still works with something else, else end the job."""
        good = self.good or next((ids for ids in self.batches if any(map(self.cap.is_committed, ids))), ())
        if good:
            works = self.works(lambda: [self.load(id) for id in good])
        else:  # nothing has ever worked: the model alone
            works = self.works(lambda: [stand_in(self.load(id)) for id in self.failed[-1][0]])
        if works:
            self.emit_failed()
        elif good or last or len(self.failed) >= MAX_UNKNOWN:
            ids, error = self.failed[-1]
            raise CaptureError(
                f"{len(self.failed)} batches in a row failed, the last with sample {ids[0]!r}, and the model "
                f"does not work {'with sample ' + repr(good[0]) + ' any more' if good else 'alone'}",
                got=str(error) if isinstance(error, I2AMError) else f"{type(error).__name__}: {error}",
                remedy="mend the model or the machine, and run again: what is committed is kept",
            ) from error

    def works(self, tasks: Callable[[], Sequence[Task]]) -> bool:
        """Whether a generation succeeds; nothing of it is kept."""
        try:
            _generate(self.cap, self.pipe, self.call, tasks(), ())
        except FATAL:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, the model does not work
            return False
        return True

    def emit_failed(self) -> None:
        for ids, error in self.failed:
            if self.on_failure is not None:
                self.on_failure(ids, error)
        self.failed.clear()


@dataclass(frozen=True, slots=True)
class _StandIn:
    id: str
    seed: int
    images: Mapping[str, ImageLike]
    texts: Mapping[str, str]


def stand_in(task: Task) -> Task:
    """A task of the same sizes and names whose content is none of the sample's."""
    images: dict[str, ImageLike] = {}
    for name, image in task.images.items():
        pixels = np.array(image)
        height, width = pixels.shape[:2]
        if "mask" in name:
            pixels[:] = 0
            pixels[height // 4 : height // 2, width // 4 : width // 2] = True if pixels.dtype == bool else 255
        else:
            ramp = np.add.outer(np.linspace(0, 127, height), np.linspace(0, 128, width))
            pixels[:] = ramp.reshape(height, width, *(1,) * (pixels.ndim - 2))
        images[name] = pixels
    return _StandIn(task.id, task.seed ^ (1 << 62), images, dict.fromkeys(task.texts, "a photo"))


def _generate(cap: Capture, pipe: Any, call: Call, tasks: Sequence[Task], missing: Sequence[str]) -> None:
    names = sorted(set.intersection(*(set(task.images) for task in tasks)))
    images = {name: [task.images[name] for task in tasks] for name in names}
    with cap.samples([task.id for task in tasks], keep=missing, images=images) as handles:
        for handle, task, image in zip(handles, tasks, call(pipe, tasks), strict=True):
            handle.generated = image
            handle.annotate({**task.texts, "seed": task.seed})


def _inputs(task: Task, names: str | Sequence[str]) -> Any:
    return _input(task, names) if isinstance(names, str) else [_input(task, name) for name in names]


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
    if isinstance(image, Image.Image):
        return image
    pixels = to_uint8(name, image)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
