"""Draft the description of an adapter: a YAML file with comments on what was found, and what to check."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.generic.description import PositionIds
from i2am.pipeline.adapters.generic.sizes import sizes_of
from i2am.pipeline.drafting.dependence import Layer, Part, dependence, leaves, parts_of
from i2am.pipeline.drafting.entries import entries
from i2am.pipeline.drafting.layouts import layouts
from i2am.pipeline.drafting.norms import outputs_and_streams
from i2am.pipeline.drafting.timesteps import schedule_of
from i2am.pipeline.drafting.token_text import Image, Known
from i2am.pipeline.drafting.watch import AttentionCall, ModuleCall, Watched, modules_of, pattern_of, watch
from i2am.storage.errors import CaptureError

_ROLES = (("cond",), ("cond", "uncond"), ("cond", "image", "uncond"))
_INPUTS = {
    r"(ip_adapter|reference|ref|subject|style|garment|cloth)(_image)?s?": "reference",
    r"mask(_image)?": "mask",
    r"prompt": "prompt",
    r"((source|init|input)_?)?image": "source",
}


@dataclass(frozen=True, slots=True)
class Draft:
    """Every attention call that was seen, and the text of a description, or why there is none."""

    watched: Watched
    text: str
    left: Mapping[Layer, str]  # layers of the denoiser that are left out, and why
    problem: CaptureError | None = None


def draft(pipe: Any, generate: Callable[[], object], steps: int = 2) -> Draft:
    """Run ``generate``, one sample, for some steps; then try what its tokens depend on."""
    watched = watch(pipe, generate, steps)
    modules = modules_of(pipe)
    try:
        return Draft(watched, *_describe(pipe, watched, modules))
    except CaptureError as problem:
        return Draft(watched, "", {}, problem)


def _describe(pipe: Any, watched: Watched, modules: dict[str, nn.Module]) -> tuple[str, dict[Layer, str]]:
    denoiser = _denoiser(watched)
    calls = watched.calls[denoiser]
    first = calls[0]
    each = next((place for place, call in enumerate(calls) if call.numbers != first.numbers), len(calls))
    later = calls[each] if each < len(calls) else None
    below = {path: module for path, module in modules.items() if f"{path}.".startswith(f"{denoiser}.")}
    taken, left = layouts(dependence(below, first, later))
    if not taken:
        unread = sorted({call.kernel for call in watched.attention if call.outer == denoiser} - {_SDPA})
        raise CaptureError(
            f"attention of {denoiser} to a reference",
            expected="keys that depend on an argument that stays the same over time, other than words",
            got="; ".join(sorted(set(left.values())))
            or f"calls of {', '.join(unread)} alone, which cannot be read",
            remedy="if one of these holds the reference, describe it by hand: help(i2am.GenericAdapter)",
        )
    lines = [f"# Drafted by i2am probe for a {type(pipe).__name__}. Lines with CHECK were guessed."]
    lines += [f"denoiser: {denoiser}", *schedule_of(pipe, first, later)]
    latents, known, about = _known(watched, denoiser, first, later)
    lines += about
    lines += _guidance(calls[:each], latents, parts_of(first, later))
    lines += _inputs(pipe)
    lines.append("layers:")
    lines += entries(taken, known, below, outputs_and_streams(below, first, taken))
    return "\n".join(lines) + "\n", left


_SDPA = "scaled_dot_product_attention"


def _denoiser(watched: Watched) -> str:
    """The outermost module with attention that is called with a number that changes, else the most often."""
    outer = dict.fromkeys(call.outer for call in watched.attention)

    def rank(path: str) -> tuple[int, int]:
        calls = watched.calls[path]
        return len({tuple(call.numbers.items()) for call in calls}), watched.counts[path]

    return max(outer, key=rank)


def _known(
    watched: Watched, denoiser: str, first: ModuleCall, later: ModuleCall | None
) -> tuple[torch.Tensor | None, Known, list[str]]:
    """The latents, sizes that are known, and the lines that say which arguments they are of."""
    arguments, lines = first.arguments, list[str]()
    parts = parts_of(first, later)
    moving = [part for part in parts if part.moving and part.name in arguments]
    name = max(moving, key=lambda part: len(part.shape)).name if moving else None
    latents = arguments[name] if name is not None else None
    wide = [key for key, value in arguments.items() if isinstance(value, torch.Tensor) and value.ndim > 2]
    if name is not None and wide[0] != name:
        lines.append(f"latents: {name}")
    ids, packed = None, None
    if latents is not None and latents.ndim == 3:
        ids = _position_ids(arguments, latents.shape[1])
        if ids is not None:
            own = "" if ids.axes == PositionIds(argument="x").axes else ", ".join(ids.axes)
            told = f"{{argument: {ids.argument}, axes: [{own}]}}" if own else ids.argument
            lines.append(f"position_ids: {told}  # tell where each image's tokens stand")
            packed = name
    rows = 1 if latents is None else int(latents.shape[0])
    images = [
        Image(path, int(value.shape[-2]), int(value.shape[-1]), call.tokens)
        for path, calls in watched.calls.items() if path != denoiser
        for call in calls if call.tokens is not None
        for value in call.arguments.values() if isinstance(value, torch.Tensor) and value.ndim == 4
    ]  # fmt: skip
    return latents, Known(sizes_of(arguments, latents, ids), images, rows, packed), lines


def _position_ids(arguments: Mapping[str, Any], tokens: int) -> PositionIds | None:
    """The argument with a place for each of the latents' tokens, if there is one."""
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor) or value.ndim not in (2, 3) or value.shape[-2] != tokens:
            continue
        if not 2 <= value.shape[-1] <= 4 or bool((value != value.round()).any()):
            continue
        axes = ["row", "column"] if value.shape[-1] == 2 else ["image", "row", "column"]
        ids = PositionIds(argument=name, axes=axes)
        try:
            sizes_of(arguments, None, ids)
        except ValueError:
            continue
        return ids
    return None


def _guidance(calls: Sequence[ModuleCall], latents: torch.Tensor | None, parts: Sequence[Part]) -> list[str]:
    """Rows of one call, or calls of one step; what is given less of what does not move is unconditional."""
    rows = 1 if latents is None else int(latents.shape[0])
    if rows > len(_ROLES) or rows * len(calls) == 1:
        return []
    still = [part.name for part in parts if not part.moving]
    given = [
        sum(float(tensor[row].float().std()) for name, tensor in leaves(call).items() if name in still)
        for call in calls for row in range(rows)
    ]  # fmt: skip
    roles = list(_ROLES[len(given) - 1]) if len(given) - 1 < len(_ROLES) else []
    if len(calls) == 1 and len(given) == 2 and given[1] >= given[0]:
        roles.reverse()
    if len(calls) == 2 and given[0] < given[1] / 2:
        roles.reverse()
    told = f"[[{', '.join(roles)}]]" if rows > 1 else f"[{', '.join(f'[{role}]' for role in roles)}]"
    if (len(calls) > 1 and rows > 1) or not roles:
        return [f"# CHECK guidance: {len(calls)} calls of {rows} rows at one timestep, for one sample"]
    about = f"{rows} rows in a call" if rows > 1 else f"{len(calls)} calls at one timestep"
    return [f"guidance: {told}  # CHECK: {about}, of one sample"]


def _inputs(pipe: Any) -> list[str]:
    """What the pipeline's call takes, by the names of its arguments."""
    found = [
        f"{argument}: {name}"
        for argument in inspect.signature(type(pipe).__call__).parameters
        for pattern, name in _INPUTS.items()
        if re.fullmatch(pattern, argument)
    ]
    told = "CHECK: argument of the pipeline's call -> image or text of a sample"
    return [f"inputs: {{{', '.join(found)}}}  # {told}"] if found else []


@dataclass(frozen=True, slots=True)
class Group:
    """Attention calls that are alike."""

    pattern: str  # of their modules' paths
    layers: int
    calls: int  # of each layer
    first: AttentionCall


def grouped(calls: Sequence[AttentionCall]) -> list[Group]:
    """Calls by pattern, kernel, shapes, mask and scale."""
    groups = defaultdict[tuple[Any, ...], list[AttentionCall]](list)
    for call in calls:
        groups[pattern_of(call.path), call.number, call.kernel, call.shape, call.mask, call.scale].append(
            call
        )
    found = []
    for (pattern, *_), own in groups.items():
        layers = len({call.path for call in own})
        found.append(Group(pattern, layers, len(own) // layers, own[0]))
    return found
