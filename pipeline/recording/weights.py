"""A fingerprint of the weights of attention, so that two checkpoints never share a run unnoticed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import Adapter
from i2am.pipeline.compilation import original, uncompiled_name
from i2am.pipeline.taps.held_weights import Groups, held, offload_groups

VALUES = 1024
"""Values of each tensor that count, evenly spaced: enough to tell checkpoints apart."""


def attention_fingerprint(pipe: Any, adapter: Adapter, layers: Sequence[str]) -> dict[str, str | None]:
    """Layer to 16 hexadecimal digits; None where its weights cannot be read now."""
    parts = (adapter.denoiser(pipe), *adapter.companions(pipe), *vars(pipe).values())
    roots = {original(part) for part in parts if isinstance(part, nn.Module)}
    groups = offload_groups(module for root in roots for module in root.modules())
    sites = (*adapter.sites(pipe), *adapter.text_sites(pipe))
    return {site.name: _digest(site.attention, groups) for site in sites if site.name in layers}


def _digest(attention: nn.Module, groups: Groups) -> str | None:
    digest = hashlib.sha256()
    count = 0
    for prefix, module in attention.named_modules():
        for name in dict(module.named_parameters(recurse=False)):
            weight = held(module, name, groups)
            if weight is None:
                return None
            path = uncompiled_name(f"{prefix}.{name}" if prefix else name)
            digest.update(f"{path} {tuple(weight.shape)}".encode())
            for numbers in _numbers(weight.detach()):
                digest.update(numbers)
            count += 1
    return digest.hexdigest()[:16] if count else None


def _numbers(weight: torch.Tensor) -> Iterator[bytes]:
    """Some of a weight's numbers; of a quantised one those of its parts, such as codes and scales."""
    if hasattr(weight, "__tensor_flatten__"):
        for part in weight.__tensor_flatten__()[0]:
            yield from _numbers(getattr(weight, part))
        return
    flat = weight.as_subclass(torch.Tensor).reshape(-1)
    yield flat[:: max(1, len(flat) // VALUES)].to("cpu", torch.float32).numpy().tobytes()
