"""What the tokens of each attention call are: generated, of a reference, of words, as far as trials tell."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch

from i2am.pipeline.drafting.dependence import Layer, Part, Tried
from i2am.pipeline.drafting.watch import pattern_of

_WORDS = re.compile(r"text|txt|prompt|caption|word|sentence", re.IGNORECASE)
_OFTEN_WORDS = re.compile(r"^(encoder_hidden_states|context|cond|c|y)$")


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens that are of one part; ``part`` None: the image being generated."""

    part: Part | None
    start: int
    stop: int
    known: bool = True  # False: they depend on no argument that was tried


@dataclass(slots=True)
class Layout:
    """One layer's call: its queries and its keys, in runs."""

    tried: Tried
    queries: list[Run]
    keys: list[Run]
    inherited: bool = False  # from an earlier call of these sizes, before its tokens had mixed
    still: bool = False
    references: list[Part] = field(default_factory=list)


def layouts(found: Mapping[Layer, Tried]) -> tuple[dict[Layer, Layout], dict[Layer, str]]:
    """Layers that see a reference; and the others, with why they are left out."""
    taken, left = dict[Layer, Layout](), dict[Layer, str]()
    each = _of_each(found)
    words = _text_parts({run.part for layout in each.values() for run in layout.keys if run.part is not None})
    for layer, layout in each.items():
        tried, size = layout.tried, layout.tried.call.shape[2:4]
        layout.references = [
            part
            for part in dict.fromkeys(run.part for run in layout.keys)
            if part is not None and part not in words
        ]
        layout.still = tried.still is not None and all(
            bool(tried.still[run.start : run.stop].all())
            for run in layout.keys
            if run.part in layout.references
        )
        if layout.references and any(run.part is None and run.known for run in layout.queries):
            taken[layer] = layout
        elif _mixed(tried.keys) and not layout.inherited and size[0] != size[1]:
            left[layer] = "tokens that have mixed before: which are which cannot be told"
        else:
            left[layer] = (
                "attention to words alone"
                if layout.keys and _all_words(layout, words)
                else "attention to itself alone"
            )
    return taken, left


def _of_each(found: Mapping[Layer, Tried]) -> dict[Layer, Layout]:
    """Each layer's own layout, or that of the first layer of its size, where tokens had not mixed yet."""
    first, layouts_of = dict[Any, Layout](), dict[Layer, Layout]()
    for layer, tried in found.items():
        size, mixed = tried.call.shape[2:4], _mixed(tried.keys)
        earlier = first.get(size)
        if earlier is not None and (mixed or _spread(tried, earlier)) and _may_be_as(layer, earlier):
            layouts_of[layer] = Layout(tried, earlier.queries, earlier.keys, inherited=True)
            continue
        layouts_of[layer] = Layout(tried, _labels(tried.queries), _labels(tried.keys))
        if not mixed:
            first.setdefault(size, layouts_of[layer])
    return layouts_of


def _may_be_as(layer: Layer, earlier: Layout) -> bool:
    """Whether keys that all depend on the generated image may stand as in an earlier call.

    There some were of the image; or it is the same layer of another block, whose references have seen it.
    """
    alike = pattern_of(layer[0]) == pattern_of(earlier.tried.call.path)
    return alike or any(run.known and run.part is None for run in earlier.keys)


def _all_words(layout: Layout, words: Collection[Part]) -> bool:
    return any(run.part in words for run in layout.keys)


def _text_parts(parts: set[Part]) -> set[Part]:
    """Parts that are words, by their arguments' names; some of these may also hold the only reference."""
    words = {part for part in parts if _WORDS.search(part.name)}
    often = {part for part in parts if _OFTEN_WORDS.search(part.name)}
    return words | often if parts - words - often else words


def _mixed(changed: Mapping[Part, torch.Tensor]) -> bool:
    """Whether every token depends on the generated image, and some on something else."""
    others = any(bool(tokens.any()) for part, tokens in changed.items() if not part.moving)
    return others and bool(_moving(changed).all())


def _moving(changed: Mapping[Part, torch.Tensor]) -> torch.Tensor:
    """The tokens that depend on the generated image."""
    tokens = [own for part, own in changed.items() if part.moving]
    if tokens:
        return torch.stack(tokens).any(0)
    return torch.zeros(len(next(iter(changed.values()), ())), dtype=torch.bool)


def _spread(tried: Tried, earlier: Layout) -> bool:
    """Whether the generated image has reached more keys than in an earlier call, if not all measurably."""
    now, before = _moving(tried.keys), places(earlier.keys, None)
    return bool(now[before].all()) and int(now.sum()) > len(before)


def _labels(changed: Mapping[Part, torch.Tensor]) -> list[Run]:
    """Runs of tokens: generated where they depend on what moves, else of the part that changes the fewest."""
    moving = _moving(changed)
    count = len(moving)
    still = sorted((part for part in changed if not part.moving), key=lambda part: int(changed[part].sum()))

    def label(token: int) -> tuple[Part | None, bool]:
        if moving[token]:
            return None, True
        part = next((part for part in still if changed[part][token]), None)
        return part, part is not None

    found, start = list[Run](), 0
    for (own, known), members in groupby(range(count), label):
        size = len(list(members))
        found.append(Run(own, start, start + size, known))
        start += size
    return found


def places(runs: Sequence[Run], part: Part | None) -> list[int]:
    """The tokens of a part, in order."""
    return [place for run in runs if run.known and run.part is part for place in range(run.start, run.stop)]
