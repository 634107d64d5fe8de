"""What a question is about: layers, steps, heads and samples of a run, checked before reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.tiled_layers import whole_name
from i2am.storage.errors import EmptyRun, InputError, NoAnswer, UnknownName
from i2am.storage.index_selection import Indices, select_indices
from i2am.storage.name_patterns import matching_names

if TYPE_CHECKING:
    from i2am.storage.format.layer_spec import LayerSpec
    from i2am.storage.reading.run_collection import AnyRun


@dataclass(frozen=True, slots=True)
class Selection:
    """The part of a run that a question is about."""

    layers: tuple[LayerSpec, ...]  # layers, in the run's order
    left_out: tuple[str, ...]  # names of layers that could not answer and were not asked for by name
    steps: tuple[int, ...]  # indices of denoiser calls, ascending as given
    heads: tuple[int, ...] | None  # indices of heads, or None for all heads of every layer
    samples: tuple[str, ...]  # ids of committed samples


def placed(layer: LayerSpec) -> int:
    """Reference tokens of a layer that have a place in the reference image."""
    return layer.ref_grid[0] * layer.ref_grid[1]


def is_similarity(layer: LayerSpec) -> bool:
    """Whether a layer attends to a single reference token.

    Its attention weight is then 1 whatever the logits are: R2G shows how alike query and key are, not what
    the model did with them. A joint softmax has other keys to choose from, so there it is attention all the
    same.
    """
    return layer.ref == 1 and not layer.lse


def has_place(layer: LayerSpec) -> bool:
    """Whether a layer has a map on the reference: tokens to choose from, some with a place."""
    return placed(layer) > 0 and not is_similarity(layer)


def select(
    run: AnyRun,
    direction: Direction,
    layers: Sequence[str] | str | None = None,
    steps: Indices | None = None,
    heads: Indices | None = None,
    samples: Sequence[str] | str | None = None,
    *,
    place: bool | None = None,
) -> Selection:
    """Resolve and check a selection; None selects all."""
    chosen, left_out = _layers(run, direction, layers, direction == "g2r" if place is None else place)
    total = min(layer.heads for layer in chosen)
    return Selection(
        layers=chosen,
        left_out=left_out,
        steps=select_indices("step", steps, len(run.timesteps)),
        heads=None if heads is None else select_indices("head", heads, total),
        samples=chosen_samples(run, samples),
    )


def joint_only(chosen: Selection, *, named: bool) -> Selection:
    """Keep the layers of a joint softmax whose log-sum-exp was stored."""
    kept = tuple(layer for layer in chosen.layers if layer.lse)
    if not kept or (named and len(kept) < len(chosen.layers)):
        silent = next(layer.name for layer in chosen.layers if not layer.lse)
        raise NoAnswer(
            f"the share of the reference in layer {silent!r}",
            expected="a layer of a joint softmax, captured with lse=True",
            got="a softmax over the reference alone",
            remedy="leave the method out" if not kept else "leave this layer out",
        )
    lost = tuple(layer.name for layer in chosen.layers if not layer.lse)
    return replace(chosen, layers=kept, left_out=(*chosen.left_out, *lost))


def _layers(
    run: AnyRun, direction: Direction, names: Sequence[str] | str | None, place: bool
) -> tuple[tuple[LayerSpec, ...], tuple[str, ...]]:
    if names is not None:
        wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
        if not wanted:
            raise InputError(
                "layers is empty", expected="at least one layer", remedy="pass None for all layers"
            )
        asked = _named(run, wanted)
        silent = [layer for layer in asked if place and not has_place(layer)]
        named = [layer for layer in silent if layer.name in wanted]
        if named or len(silent) == len(asked):
            layer = (named or silent)[0]
            raise NoAnswer(
                f"this {direction} question to layer {layer.name!r}",
                expected="reference tokens with a place in the reference image",
                got=f"{layer.ref} token(s) without one",
                remedy="ask for unified r2g, or leave this layer out",
            )
        return tuple(layer for layer in asked if layer not in silent), tuple(layer.name for layer in silent)
    # Other guidance roles are there to be compared with, never to be averaged in unasked.
    every = list(run.layers.values())
    meant = [layer for layer in every if layer.role == "cond"] or every
    able = [layer for layer in meant if has_place(layer) or not place]
    if not able:
        raise NoAnswer(
            f"this {direction} question to this run",
            expected="a layer whose reference tokens have a place in the reference image",
            got="only pooled tokens",
            remedy="ask for unified r2g, which is then a similarity",
        )
    kept = tuple([layer for layer in able if not is_similarity(layer)] or able)
    return kept, tuple(name for name, layer in run.layers.items() if layer not in kept)


def _named(run: AnyRun, wanted: list[str]) -> list[LayerSpec]:
    """Layers by name or pattern; the name of a layer that was captured in tiles means all of them."""
    wholes = {whole_name(layer): layer for layer in run.layers.values()}
    found = set(matching_names("layer", wanted, list(dict(run.layers) | wholes)))
    return [layer for name, layer in run.layers.items() if name in found or whole_name(layer) in found]


def chosen_samples(run: AnyRun, names: Sequence[str] | str | None) -> tuple[str, ...]:
    """Resolve and check a selection of samples; None selects all."""
    if not run.samples:
        raise EmptyRun(
            f"run {run.path} holds no committed sample",
            expected="at least one",
            got=f"0 of {len(run.declared)} declared",
            remedy="capture some first",
        )
    if names is None:
        return tuple(run.samples)
    wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    known = set(run.samples)
    for name in wanted:
        if name not in known:
            waiting = name in set(run.declared)
            remedy = "it is declared but not captured yet; resume the capture" if waiting else None
            raise UnknownName("sample", name, list(run.samples), remedy=remedy)
    if not wanted:
        raise InputError(
            "samples is empty", expected="at least one sample", remedy="pass None for all samples"
        )
    return tuple(wanted)


def split_steps(steps: Sequence[int], groups: int) -> list[tuple[int, ...]]:
    """Split steps into `groups` runs of neighbours, as equal as they can be, the longer ones first."""
    if not 1 <= groups <= len(steps):
        raise InputError(
            f"time_groups={groups}",
            expected=f"1 to {len(steps)}, the number of steps selected",
            remedy="ask for fewer groups, or select more steps",
        )
    return [tuple(int(step) for step in part) for part in np.array_split(np.asarray(steps), groups)]
