"""What two runs, or studies, have in common: the samples in both, and the layers that answer in both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from i2am.analysis.grids.direction import DIRECTIONS, Direction
from i2am.analysis.grids.selection import Selection, select, select_samples
from i2am.analysis.maps.official_layers import official_selection
from i2am.analysis.maps.question import Level
from i2am.storage.errors import NoAnswer

if TYPE_CHECKING:
    from i2am.analysis.options import StudyOptions
    from i2am.storage.reading.run_collection import AnyRun

LEVELS: tuple[Level, ...] = ("unified", "time", "head", "layer")
"""Levels that two runs are compared at."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """What is compared: samples and layers in A's order."""

    samples: tuple[str, ...]  # ids in both
    alone: tuple[int, int]  # how many samples are in A alone, and in B alone
    layers: dict[Direction, tuple[str, ...]]  # names of those that answer in both
    levels: dict[Direction, tuple[Level, ...]]  # that both answer
    groups: int  # of the time level: fewer than asked for if one of the runs has fewer steps
    absent: tuple[str, ...]  # what is not compared, and why, one line each

    @property
    def every_layer(self) -> tuple[str, ...]:
        """Layers of any direction."""
        return tuple(dict.fromkeys(name for names in self.layers.values() for name in names))

    @property
    def questions(self) -> list[tuple[Direction, Level]]:
        """Every (direction, level)."""
        return [(direction, level) for direction, levels in self.levels.items() for level in levels]


def pair(a: AnyRun, b: AnyRun, options: StudyOptions) -> Pairing:
    """Find what two runs have in common."""
    samples, alone = _samples(a, b, options)
    layers: dict[Direction, tuple[str, ...]] = {}
    levels: dict[Direction, tuple[Level, ...]] = {}
    absent: list[str] = []
    groups = options.time_groups
    for direction in DIRECTIONS:
        try:
            both = _chosen(a, direction, options), _chosen(b, direction, options)
            names = _common(direction, *both, absent)
        except NoAnswer as error:
            absent.append(f"{direction.upper()}: {error}")
            continue
        layers[direction] = names
        groups = min(groups, *(len(chosen.steps) for chosen in both))
        silent = list(_other_heads(a, b, names, options))
        absent += [f"{direction.upper()}, head level: {line}" for line in silent]
        levels[direction] = tuple(level for level in LEVELS if level != "head" or not silent)
    if not layers:
        raise NoAnswer(
            f"a comparison of {a.path} and {b.path}",
            expected="layers of the same name that answer in both",
            got=absent[0],
            remedy="select layers that both have",
        )
    return Pairing(samples, alone, layers, levels, groups, tuple(absent))


def _samples(a: AnyRun, b: AnyRun, options: StudyOptions) -> tuple[tuple[str, ...], tuple[int, int]]:
    first, second = (select_samples(run, options.samples) for run in (a, b))
    common = set(first) & set(second)
    if not common:
        raise NoAnswer(
            f"a comparison of {a.path} and {b.path}",
            expected="samples of the same id in both: they are compared pair by pair",
            got=f"{first[0]!r}, ... and {second[0]!r}, ...",
            remedy="capture the same samples with both, under the same ids",
        )
    return tuple(name for name in first if name in common), (
        len(first) - len(common),
        len(second) - len(common),
    )


def _chosen(run: AnyRun, direction: Direction, options: StudyOptions) -> Selection:
    asked = (options.layers, options.steps, options.heads)
    if options.protocol == "official":
        return official_selection(run, direction, *asked, None)
    return select(run, direction, *asked)


def _common(direction: Direction, one: Selection, other: Selection, absent: list[str]) -> tuple[str, ...]:
    """Names of the layers of both; a line for those of one alone."""
    first, second = ([spec.name for spec in chosen.layers] for chosen in (one, other))
    common = tuple(name for name in first if name in second)
    if not common:
        raise NoAnswer(
            f"{direction} of both runs",
            expected="layers of the same name",
            got=f"{first[0]!r}, ... and {second[0]!r}, ...",
            remedy="compare runs of one architecture",
        )
    for which, names in (("A", first), ("B", second)):
        if lost := [name for name in names if name not in common]:
            absent.append(
                f"{direction.upper()}: {len(lost)} layers that answer in {which} alone, such as {lost[0]}"
            )
    return common


def _other_heads(a: AnyRun, b: AnyRun, names: tuple[str, ...], options: StudyOptions) -> Iterator[str]:
    """Why heads of the same number cannot be paired, if they cannot."""
    if options.heads is not None:
        return
    for name in names:
        heads = a.layers[name].heads, b.layers[name].heads
        if heads[0] != heads[1]:
            yield f"layer {name!r} has {heads[0]} heads in A and {heads[1]} in B"
            return
