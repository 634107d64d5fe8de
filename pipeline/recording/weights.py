"""A fingerprint of the weights of attention, so that two checkpoints never share a run unnoticed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from i2am.pipeline.adapters.contract import Adapter
from i2am.pipeline.compilation import uncompiled_name

VALUES = 1024
"""Values of each tensor that count, evenly spaced: enough to tell checkpoints apart."""


def attention_fingerprint(pipe: Any, adapter: Adapter, layers: Sequence[str]) -> dict[str, str]:
    """Layer to 16 hexadecimal digits; layers whose weights are elsewhere (offloaded) are left out."""
    found = {}
    for site in adapter.sites(pipe):
        if site.name not in layers:
            continue
        digest = hashlib.sha256()
        parameters = list(site.attention.named_parameters())
        if not parameters or any(parameter.is_meta for _, parameter in parameters):
            continue
        for name, parameter in parameters:
            flat = parameter.detach().reshape(-1)
            values = flat[:: max(1, len(flat) // VALUES)].to("cpu", torch.float32)
            digest.update(
                f"{uncompiled_name(name)} {tuple(parameter.shape)}".encode() + values.numpy().tobytes()
            )
        found[site.name] = digest.hexdigest()[:16]
    return found
