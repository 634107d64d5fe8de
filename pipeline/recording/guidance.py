"""Classifier-free guidance as a model sees it: which calls make a step, and whose rows each call holds.

A layout is written as a sequence of calls, each a sequence of row blocks: ``[["uncond", "cond"]]`` is one
batch, ``[["cond"], ["uncond"]]`` separate calls, ``[["cond", "image", "uncond"]]`` InstructPix2Pix's three
chunks, ``[["cond"]]`` no guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from i2am.pipeline.timesteps import Moment
from i2am.storage.errors import CaptureError, InputError

Layout: TypeAlias = tuple[tuple[str, ...], ...]
"""Roles of the row blocks of each call of a step."""


def as_layout(guidance: Sequence[Sequence[str]] | None) -> Layout | None:
    """Check a user's layout.

    Raises
    ------
    InputError
        If it is no sequence of calls with named row blocks, each role once.
    """
    if guidance is None:
        return None
    try:
        layout = tuple(() if isinstance(call, str) else tuple(call) for call in guidance)
    except TypeError:
        layout = ()
    roles = [role for call in layout for role in call]
    if not layout or not all(layout) or len(set(roles)) < len(roles) or not all(map(_is_name, roles)):
        raise InputError(
            "guidance",
            expected="calls of a step, each a list of row blocks, each role once: [['uncond', 'cond']] or "
            "[['cond'], ['uncond']]",
            got=repr(guidance),
        )
    return layout


def _is_name(role: Any) -> bool:
    return isinstance(role, str) and role.isidentifier()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a denoiser call stands.

    Attributes
    ----------
    step
        Index of the step.
    index
        Number of the call in its step.
    rows
        Roles of its row blocks where they are known from the call, else None.
    """

    step: int
    index: int
    rows: tuple[str, ...] | None


class Calls:
    """Tells to which step each denoiser call belongs.

    Parameters
    ----------
    layout
        The user's own layout, or None.
    order
        Roles of the separate calls that the family may make; empty: one call a step.
    progress
        The scheduler's own count of steps taken, or None where it keeps none.

    Notes
    -----
    Calls that carry a key (a tile's place, a label) make one step as long as the timestep stays and no key
    comes back. Without key, whether guidance is on shows at the second call: the scheduler has, or has not,
    taken a step since the first.
    """

    def __init__(
        self, layout: Layout | None, order: tuple[str, ...], progress: Callable[[], int | None]
    ) -> None:
        self._layout, self._order, self._progress = layout, order, progress
        self._count = len(layout) if layout else 1 if len(order) < 2 else None
        self._schedule: Sequence[float] = ()
        self._step, self._index = -1, -1
        self._moment = Moment(float("nan"))
        self._taken: int | None = None
        self._keys: set[Hashable] = set()

    @property
    def steps(self) -> int:
        """Steps that have begun."""
        return self._step + 1

    @property
    def complete(self) -> bool:
        """Whether no further call of the current step can come, as far as is known."""
        return not self._keys and self._count is not None and self._index + 1 == self._count

    def begin(self, now: Moment, schedule: Sequence[float], key: Hashable = None, label: str = "") -> Place:
        """Place the call that begins.

        Parameters
        ----------
        now
            Its timestep.
        schedule
            Announced timesteps.
        key, label
            What tells the calls of one step apart: a tile's place; the role that the pipeline itself names.

        Raises
        ------
        CaptureError
            If the call is not the announced one.
        """
        self._schedule = schedule
        taken = self._progress()
        keyed = key if key is not None else label or None
        if self._step < 0 or not self._continues(now, taken, keyed):
            self._step, self._index, self._keys = self._step + 1, 0, set()
        else:
            self._index += 1
        if keyed is not None:
            self._keys.add(keyed)
        self._moment, self._taken = now, taken
        if self._step >= len(schedule) or not now.near(schedule[self._step]):
            raise self._unannounced(now)
        return Place(self._step, self._index, self._rows(label))

    def finished(self) -> bool:
        """Whether the generation has made every announced step, the last one with all its calls."""
        whole = bool(self._keys) or self._count in (None, self._index + 1)
        return 0 < len(self._schedule) == self._step + 1 and whole

    def _continues(self, now: Moment, taken: int | None, key: Hashable) -> bool:
        if key is not None and self._keys:
            return key not in self._keys and now == self._moment
        if self._count is None:  # the second call of a generation
            again = now == self._moment if taken is None else taken == self._taken
            self._count = len(self._order) if again and not self._repeats(taken) else 1
        return self._index + 1 < self._count

    def _repeats(self, taken: int | None) -> bool:
        """Whether the schedule repeats the first timestep, so that a call cannot be told from a step."""
        if taken is not None or len(self._schedule) < 2:
            return False
        if abs(self._schedule[0] - self._schedule[1]) > self._moment.tolerance / 2:
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

    def _unannounced(self, now: Moment) -> CaptureError:
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
        scheduler = getattr(pipe, "scheduler", None)
        if scheduler is None or not hasattr(scheduler, "step_index"):
            return None
        return int(scheduler.step_index or 0)

    return progress
