"""A capture job: every missing sample of a run, in batches, each generated from its own seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline.capturing import Capture
from pipeline.images import ImageLike
from storage.errors import InputError


class Task(Protocol):
    """One sample to generate."""

    @property
    def id(self) -> str:
        """Sample id."""

    @property
    def seed(self) -> int:
        """Seed of its noise."""

    @property
    def images(self) -> Mapping[str, ImageLike]:
        """``source``, ``reference``, ``mask``, ... by name."""

    @property
    def texts(self) -> Mapping[str, str]:
        """``prompt``, ``negative_prompt``, ... by name."""


@dataclass(frozen=True, slots=True)
class Call:
    """How to call a pipeline.

    Attributes
    ----------
    inputs
        Argument of the call -> name of the task's image or text that it takes.
    arguments
        The other arguments: steps, guidance scale, size.
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
) -> int:
    """Generate and capture every sample of ``cap`` that is missing.

    Parameters
    ----------
    cap
        An entered capture of ``pipe``.
    pipe
        The pipeline.
    load
        Sample id to task; called when its turn comes, so that images are in memory one batch at a time.
    call
        How to call the pipeline.
    batch_size
        Samples in one call.
    limit
        Most samples to take now.

    Returns
    -------
    int
        Samples captured now.
    """
    declared, waiting = cap.declared, set(cap.missing[:limit])
    for start in range(0, len(declared), batch_size):
        ids = declared[start : start + batch_size]
        missing = [id for id in ids if id in waiting]
        if not missing:
            continue
        # The whole batch, also where a part of it is committed: other rows could change the last bits.
        tasks = [load(id) for id in ids]
        names = sorted(set.intersection(*(set(task.images) for task in tasks)))
        images = {name: [task.images[name] for task in tasks] for name in names}
        with cap.samples(ids, keep=missing, **images) as handles:
            for handle, task, image in zip(handles, tasks, call(pipe, tasks), strict=True):
                handle.generated = image
                handle.annotate(seed=task.seed, **task.texts)
    return len(waiting)


def _input(task: Task, name: str) -> Any:
    """What pipelines take: a text, or a PIL image, which arrays are turned into."""
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
