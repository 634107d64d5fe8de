"""Weights as they can be read now, wherever offloading has put them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

Groups = Mapping[int, Any]
"""Identity of a parameter to diffusers' group of weights that are brought and taken away together."""


def offload_groups(modules: Iterable[nn.Module]) -> Groups:
    """The groups that the hooks of these modules, and of no other, bring (`enable_group_offload`)."""
    found: dict[int, Any] = {}
    for module in modules:
        registry = getattr(module, "_diffusers_hook", None)
        group = getattr(registry and registry.get_hook("group_offloading"), "group", None)
        if group is not None:
            own = [weight for each in group.modules for weight in each.parameters()]
            found |= {id(weight): group for weight in (*own, *group.parameters)}
    return found


def held(module: nn.Module, name: str, groups: Groups) -> torch.Tensor | None:
    """A module's own parameter, or what stands for it elsewhere; None where it cannot be read now."""
    weight: torch.Tensor = getattr(module, name)
    if weight.is_meta:
        return _kept_by_accelerate(module, name)
    group = groups.get(id(weight))
    if group is None:
        return weight
    if group.offload_to_disk_path is not None:
        return None  # what the parameter holds meanwhile is memory that nobody has written
    copy: torch.Tensor = group.cpu_param_dict.get(weight, weight)  # the weight itself may be on its way
    return copy


def _kept_by_accelerate(module: nn.Module, name: str) -> torch.Tensor | None:
    """A weight that accelerate brings for each call (`enable_sequential_cpu_offload`, `device_map`)."""
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        weights = getattr(each, "weights_map", None)
        if weights is not None:
            try:
                kept: torch.Tensor = weights[name]
            except KeyError:
                continue
            return kept
    return None
