"""Classifier-free guidance as a model sees it: which calls make a step, and whose rows each call holds.

A layout is written as a sequence of calls, each a sequence of row blocks: ``[["uncond", "cond"]]`` is one
batch, ``[["cond"], ["uncond"]]`` separate calls, ``[["cond", "image", "uncond"]]`` InstructPix2Pix's three
chunks, ``[["cond"]]`` no guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from i2am.pipeline.timesteps import Timestep, scheduler_of
from i2am.storage.errors import CaptureError, InputError

Layout: TypeAlias = tuple[tuple[str, ...], ...]
"""Roles of the row blocks of each call of a step."""


def as_layout(guidance: Sequence[Sequence[str]] | None) -> Layout | None:
    """A user's layout, checked: calls with named row blocks, each role once."""
    if guidance is None:
        return None
    try:
        layout = tuple(() if isinstance(call, str) else tuple(call) for call in guidance)
    except TypeError:
        layout = ()
    roles: list[Any] = [role for call in layout for role in call]
    named = all(isinstance(role, str) and role.isidentifier() for role in roles)
    if not layout or not all(layout) or not named or len(set(roles)) < len(roles):
        raise InputError(
            "guidance",
            expected="calls of a step, each a list of row blocks, each role once: [['uncond', 'cond']] or "
            "[['cond'], ['uncond']]",
            got=repr(guidance),
        )
    return layout


@dataclass(frozen=True, slots=True)
class CallPosition:
    """A denoiser call: its step, its number in the step, and its rows' roles where the call tells them."""

    step: int
    index: int
    rows: tuple[str, ...] | None


class StepTracker:
    """Finds the step of each denoiser call of one generation.

    Calls that carry a key (a tile, a label) make one step as long as the timestep stays and no key
    comes back. Without key, a call belongs to the step before as long as the scheduler has taken none since,
    so that guidance may end or begin midway; where it keeps no count, the second call of the generation tells
    how many make a step. ``layout`` is the user's own, if any; ``order`` the roles of the separate calls that
    the family may make (empty: one call a step); ``progress`` the scheduler's own count of steps taken, None
    where it keeps none.
    """

    def __init__(
        self, layout: Layout | None, order: tuple[str, ...], progress: Callable[[], int | None]
    ) -> None:
        self._layout, self._order, self._progress = layout, order, progress
        self._calls_per_step = len(layout) if layout else 1 if len(order) < 2 else None
        self._schedule: Sequence[float] = ()
        self._step, self._index = -1, -1
        self._timestep = Timestep(float("nan"))
        self._taken: int | None = None
        self._keys: set[Hashable] = set()

    @property
    def steps(self) -> int:
        """Steps that have begun."""
        return self._step + 1

    @property
    def step_complete(self) -> bool:
        """Whether no further call of the current step can come, as far as is known."""
        return not self._keys and self._index + 1 == (self._calls_per_step or len(self._order))

    @property
    def whole_steps(self) -> int:
        """Steps that have made all their calls, once no further call can come."""
        whole = bool(self._keys) or self._calls_per_step in (None, self._index + 1)
        return self.steps if whole else max(0, self._step)

    def begin(
        self, now: Timestep, schedule: Sequence[float], tile: Hashable = None, label: str = ""
    ) -> CallPosition:
        """The position of the call that begins; ``label`` is the role that the pipeline itself names."""
        self._schedule = schedule
        taken = self._progress()
        key = tile if tile is not None else label or None
        if self._step < 0 or not self._continues(now, taken, key):
            self._step, self._index, self._keys = self._step + 1, 0, set()
        else:
            self._index += 1
        if key is not None:
            self._keys.add(key)
        self._timestep, self._taken = now, taken
        if self._step >= len(schedule) or not now.near(schedule[self._step]):
            raise self._unannounced(now)
        return CallPosition(self._step, self._index, self._rows(label))

    def _continues(self, now: Timestep, taken: int | None, key: Hashable) -> bool:
        if key is not None and self._keys:
            return key not in self._keys and now == self._timestep
        if self._layout is None and len(self._order) > 1 and taken is not None:
            return now == self._timestep and taken == self._taken and self._index + 1 < len(self._order)
        if self._calls_per_step is None:  # the second call of a generation
            again = now == self._timestep and not self._repeats()
            self._calls_per_step = len(self._order) if again else 1
        return self._index + 1 < self._calls_per_step

    def _repeats(self) -> bool:
        """Whether the schedule repeats the first timestep, so that a call cannot be told from a step."""
        if len(self._schedule) < 2:
            return False
        if abs(self._schedule[0] - self._schedule[1]) > self._timestep.tolerance / 2:
            return False
        raise CaptureError(
            "guidance of a generation whose first two timesteps are equal",
            expected="the layout of its calls",
            got="none",
            remedy=f"give it: guidance={[[role] for role in self._order]} or [['cond']]",
        )

    def _rows(self, label: str) -> tuple[str, ...] | None:
        if self._layout is not None:
            return self._layout[self._index]
        if label:
            return (label,)
        return (self._order[self._index],) if self._order else None

    def _unannounced(self, now: Timestep) -> CaptureError:
        known = self._step < len(self._schedule)
        announced = f"{self._schedule[self._step]:g}" if known else "no further step"
        return CaptureError(
            f"denoiser call at step {self._step}",
            expected=f"{announced} (of {len(self._schedule)} announced timesteps)",
            got=f"timestep {now.value:g}",
            remedy="make one pipeline call in each sample context; give timesteps=[...] where the scheduler "
            "does not announce them, and guidance=[...] where a step makes several calls",
        )


def scheduler_progress(pipe: Any) -> Callable[[], int | None]:
    """The count of steps that the pipeline's scheduler has taken; None where it keeps no count."""

    def progress() -> int | None:
        scheduler = scheduler_of(pipe)
        if scheduler is None or not hasattr(scheduler, "step_index"):
            return None
        return int(scheduler.step_index or 0)

    return progress


def role_of_label(label: str) -> str:
    """The role that a pipeline's own label of a denoiser call says; modular pipelines say ``pred_cond``."""
    return label.removeprefix("pred_")
