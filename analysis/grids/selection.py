"""The layers, steps, heads and samples that a question is about, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.tiled_layers import untiled_name
from i2am.storage.errors import EmptyRun, InputError, NoAnswer, UnknownName
from i2am.storage.format.file_names import sample_ids
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.index_selection import Indices, select_indices
from i2am.storage.name_patterns import matching_names
from i2am.storage.reading.one_reference import references_of
from i2am.storage.reading.run_collection import AnyRun


@dataclass(frozen=True, slots=True)
class Selection:
    """The part of a run that a question is about."""

    layers: tuple[LayerSpec, ...]  # in the run's order
    left_out: tuple[str, ...]  # names of layers that cannot answer and were not asked for by name
    steps: tuple[int, ...]
    heads: tuple[int, ...] | None  # None: all heads of every layer
    samples: tuple[str, ...]

    def attributes(self) -> dict[str, Any]:
        """Attributes of a result: the kind of its numbers, and what they were made from."""
        similar = [is_similarity(layer) for layer in self.layers]
        return {
            "kind": "similarity" if all(similar) else "mixed" if any(similar) else "attention",
            "layers": [layer.name for layer in self.layers],
            "left_out": list(self.left_out),
            "steps": list(self.steps),
            "reference": self.layers[0].reference,
        }


def spatial_tokens(layer: LayerSpec) -> int:
    """Number of reference tokens that stand for a place in the reference image."""
    return layer.ref_grid[0] * layer.ref_grid[1]


def is_similarity(layer: LayerSpec) -> bool:
    """Whether a layer attends to a single reference token, and to nothing else.

    The attention weight is then 1 whatever the logits are, so R2G shows how alike query and key are, not what
    the model did with them. A joint softmax has other keys, so there one token still gets attention.
    """
    return layer.ref == 1 and not layer.lse


def has_reference_map(layer: LayerSpec) -> bool:
    """Whether a layer has a map on the reference: it has several tokens, and some have a place."""
    return spatial_tokens(layer) > 0 and not is_similarity(layer)


def select(
    run: AnyRun,
    direction: Direction,
    layers: Sequence[str] | str | None = None,
    steps: Indices | None = None,
    heads: Indices | None = None,
    samples: Sequence[str] | str | None = None,
    *,
    on_reference: bool | None = None,
) -> Selection:
    """Resolve and check a selection; None selects all, of a run with several references those of the first.

    `layers` are names or shell patterns such as ``*up_blocks*``; a layer that a pattern matches is left out
    if it cannot answer, and a layer that is named must answer (`NoAnswer`). `on_reference` asks for layers
    that have a map on the reference; by default only "g2r" does.
    """
    needs_map = direction == "g2r" if on_reference is None else on_reference
    if layers is None:
        found, left_out = _default_layers(run, direction, needs_map)
    else:
        found, left_out = _asked_layers(run, direction, layers, needs_map)
    fewest_heads = min(layer.heads for layer in found)
    return Selection(
        layers=found,
        left_out=left_out,
        steps=select_indices("step", steps, len(run.timesteps)),
        heads=None if heads is None else select_indices("head", heads, fewest_heads),
        samples=select_samples(run, samples),
    )


_NORMED = ("a layer captured with value_norms=True", "none", "capture again, into a new run")
_WITH: Mapping[str, tuple[str, ...]] = {
    "lse": (
        "the share of the reference", "a layer of a joint softmax, captured with lse=True",
        "a softmax over the reference alone", "leave the method out",
    ),
    "value_norm": ("value norms", *_NORMED),
    "contribution": ("contributions", *_NORMED),
}  # fmt: skip
"""What a layer may have beside its attention: its name, and what is expected, got, and to be done."""


def keep_layers_with(selection: Selection, kind: str, *, named: bool) -> Selection:
    """Keep the layers of which something was stored, such as "lse"; all must be, if they were `named`."""
    able = tuple(layer for layer in selection.layers if getattr(layer, kind))
    others = tuple(layer.name for layer in selection.layers if not getattr(layer, kind))
    if others and (named or not able):
        what, expected, got, remedy = _WITH[kind]
        raise NoAnswer(
            f"{what} of layer {others[0]!r}",
            expected=expected,
            got=got,
            remedy="leave this layer out" if able else remedy,
        )
    return replace(selection, layers=able, left_out=(*selection.left_out, *others))


# Layers that answer, and the names of those that are left out.
Layers = tuple[tuple["LayerSpec", ...], tuple[str, ...]]


def _asked_layers(run: AnyRun, direction: Direction, names: Sequence[str] | str, needs_map: bool) -> Layers:
    wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if not wanted:
        raise InputError("layers is empty", expected="at least one layer", remedy="pass None for all layers")
    # The name of a layer that was captured in tiles stands for all of its tiles.
    untiled = {untiled_name(layer): layer for layer in run.layers.values()}
    matched = set(matching_names("layer", wanted, list(dict(run.layers) | untiled)))
    asked = [layer for name, layer in run.layers.items() if matched & {name, untiled_name(layer)}]
    first = references_of(run)[0]
    others = [layer for layer in asked if layer.reference != first]
    strays = [layer for layer in others if layer.name in wanted]
    if strays := strays or (others if len(others) == len(asked) else []):
        raise NoAnswer(
            f"this question to layer {strays[0].name!r}",
            expected=f"layers of one reference, here {first!r}",
            got=repr(strays[0].reference),
            remedy=f"ask with reference={strays[0].reference!r}, or --reference",
        )
    asked = [layer for layer in asked if layer not in others]
    unable = [layer for layer in asked if needs_map and not has_reference_map(layer)]
    named = [layer for layer in unable if layer.name in wanted]
    if named or len(unable) == len(asked):
        layer = (named or unable)[0]
        raise NoAnswer(
            f"this {direction} question to layer {layer.name!r}",
            expected="reference tokens with a place in the reference image",
            got=f"{layer.ref} token(s) without one",
            remedy="ask for unified r2g, or leave this layer out",
        )
    left_out = tuple(layer.name for layer in (*unable, *others))
    return tuple(layer for layer in asked if layer not in unable), left_out


def _default_layers(run: AnyRun, direction: Direction, needs_map: bool) -> Layers:
    first, *others = references_of(run)
    every = [layer for layer in run.layers.values() if layer.reference == first]
    # Layers of other guidance roles are there for comparison, and are averaged in only where they are named.
    conditional = [layer for layer in every if layer.role == "cond"] or every
    able = [layer for layer in conditional if has_reference_map(layer) or not needs_map]
    if not able:
        raise NoAnswer(
            f"this {direction} question to this run",
            expected="a layer whose reference tokens have a place in the reference image",
            got=f"only pooled tokens of {first!r}" if others else "only pooled tokens",
            remedy=f"ask for another reference ({', '.join(others)})" if others else "ask for unified r2g",
        )
    found = tuple([layer for layer in able if not is_similarity(layer)] or able)
    return found, tuple(name for name, layer in run.layers.items() if layer not in found)


def select_samples(run: AnyRun, names: Sequence[str] | str | None) -> tuple[str, ...]:
    """Committed samples in the order given, each once; None selects all."""
    if not run.samples:
        raise EmptyRun(
            f"run {run.path} holds no committed sample",
            expected="at least one",
            got=f"0 of {len(run.declared)} declared",
            remedy="capture some first",
        )
    if names is None:
        return tuple(run.samples)
    wanted = list(dict.fromkeys([names] if isinstance(names, str) else sample_ids(names)))
    known = set(run.samples)
    for name in wanted:
        if name not in known:
            declared = name in set(run.declared)
            remedy = "it is declared but not captured yet; resume the capture" if declared else None
            raise UnknownName("sample", name, list(run.samples), remedy=remedy)
    if not wanted:
        raise InputError(
            "samples is empty", expected="at least one sample", remedy="pass None for all samples"
        )
    return tuple(wanted)


def split_steps(steps: Sequence[int], groups: int) -> list[tuple[int, ...]]:
    """Split steps into groups of neighbours, as equal as can be, the longer first; at most one a step."""
    if isinstance(groups, bool) or not hasattr(groups, "__index__") or groups < 1:
        raise InputError("time_groups", expected="a whole number of 1 or more", got=repr(groups))
    parts = np.array_split(np.asarray(steps), min(groups, len(steps)))
    return [tuple(int(step) for step in part) for part in parts]
