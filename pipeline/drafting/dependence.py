"""Which tokens of an attention call depend on which part of the denoiser's arguments: tried, not guessed.

The denoiser is called again with its own arguments of the first step, each time with noise on one part of
one of them: what changed between two steps (*moving*: the image being generated), or what did not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from i2am.pipeline.drafting.watch import AttentionCall, ModuleCall, Watched, mapped, watching
from i2am.pipeline.taps.kernels import KernelCall

Layer: TypeAlias = tuple[str, int]
"""An attention module's path, and the number of its call."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part of a tensor among the denoiser's arguments, ``name`` or ``name[0]``."""

    name: str
    moving: bool
    where: torch.Tensor  # broadcasts over the tensor
    shape: tuple[int, ...]
    tokens: int | None  # of [row, token, width]: those of this part


@dataclass(slots=True)
class Tried:
    """One layer's attention call, and which of its tokens changed with which part."""

    call: AttentionCall
    several: bool  # its module makes others
    queries: dict[Part, torch.Tensor] = field(default_factory=dict)  # part to [token], bool
    keys: dict[Part, torch.Tensor] = field(default_factory=dict)
    still: torch.Tensor | None = None  # [token]: keys that are the same at the next step


def dependence(
    modules: Mapping[str, nn.Module], first: ModuleCall, later: ModuleCall | None
) -> dict[Layer, Tried]:
    """Try each part of the arguments of the denoiser's ``first`` call; ``later`` is that of the next step."""
    plain, calls = _marks(modules, first, first.args, first.kwargs)
    made = Counter(path for path, _ in calls)
    found = {layer: Tried(call, made[layer[0]] > 1) for layer, call in calls.items()}
    if later is not None:
        for layer, marks in _marks(modules, first, later.args, later.kwargs)[0].items():
            if layer in found and marks[1].shape == plain[layer][1].shape:
                found[layer].still = marks[1] == plain[layer][1]
    for part in parts_of(first, later):
        args, kwargs = _with_noise(first, part)
        for layer, marks in _marks(modules, first, args, kwargs)[0].items():
            if layer in found:
                found[layer].queries[part], found[layer].keys[part] = (
                    now != before for now, before in zip(marks, plain[layer], strict=True)
                )
    return found


def parts_of(first: ModuleCall, later: ModuleCall | None) -> list[Part]:
    """Parts of the tensors of features: [row, token, width], [row, channel, rows, columns] and larger."""
    before, after = (leaves(call) if call is not None else {} for call in (first, later))
    found = []
    for name, tensor in before.items():
        if not tensor.is_floating_point() or tensor.ndim < 3:
            continue
        other = after.get(name)
        if other is not None and other.shape == tensor.shape:
            axes = (0, 2) if tensor.ndim == 3 else (0, *range(2, tensor.ndim))
            moving = (tensor != other).sum(axes, keepdim=True) > 0
        else:
            moving = torch.full((1,) * tensor.ndim, tensor.ndim > 3, device=tensor.device)
        for own, where in ((True, moving), (False, ~moving)):
            if where.any():
                tokens = int(where.expand(1, tensor.shape[1], 1).sum()) if tensor.ndim == 3 else None
                found.append(Part(name, own, where, tuple(tensor.shape), tokens))
    return found


def leaves(call: ModuleCall) -> dict[str, torch.Tensor]:
    """Every tensor among a call's arguments, by path."""
    found = {}

    def keep(path: str, tensor: torch.Tensor) -> torch.Tensor:
        found[path] = tensor
        return tensor

    mapped(call.arguments, keep)
    return found


def _with_noise(call: ModuleCall, part: Part) -> tuple[tuple[Any, ...], dict[str, Any]]:
    target = leaves(call)[part.name]

    def change(path: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor is not target:
            return tensor
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
        return torch.where(part.where, tensor + noise.to(tensor), tensor)

    return mapped((call.args, call.kwargs), change)  # type: ignore[no-any-return]


def _marks(
    modules: Mapping[str, nn.Module], first: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[Layer, tuple[torch.Tensor, torch.Tensor]], dict[Layer, AttentionCall]]:
    """Call the denoiser; a number for each query token and key token of each attention call."""
    found, calls = dict[Layer, tuple[torch.Tensor, torch.Tensor]](), dict[Layer, AttentionCall]()

    def keep(call: AttentionCall, kernel: KernelCall) -> None:
        layer = call.path, call.number
        if layer not in found and kernel.query is not None and kernel.key is not None:
            found[layer], calls[layer] = (_mark(kernel.query), _mark(kernel.key)), call

    with watching(modules, Watched(), keep):
        first.again(args, kwargs)
    return found, calls


def _mark(tensor: torch.Tensor) -> torch.Tensor:
    """A number for each token, of all its rows and heads."""
    rows, heads, _, dim = tensor.shape
    weights = torch.linspace(1, 2, rows * heads * dim, dtype=torch.float64, device=tensor.device)
    return (tensor.double() * weights.reshape(rows, heads, 1, dim)).sum((0, 1, 3)).cpu()
