"""A witness at the attention kernel: what reaches ``scaled_dot_product_attention`` inside chosen modules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Call:
    """One kernel call, in double precision: logits [row, head, query, key], a mask, what it returned."""

    logits: torch.Tensor
    mask: torch.Tensor | None


@contextmanager
def kernel_witness(root: nn.Module, path: str, monkeypatch) -> Iterator[dict[str, list[list[Call]]]]:
    """Calls by module path, a list for each forward of the module. Nothing of the project is used."""
    seen: dict[str, list[list[Call]]] = {}
    inside: list[str] = []
    kernel = F.scaled_dot_product_attention

    def enter(name):
        def hook(module, args):
            inside.append(name)
            seen.setdefault(name, []).append([])

        return hook

    def spy(query, key, value, attn_mask=None, *args, **kwargs):
        if inside:
            logits = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
            seen[inside[-1]][-1].append(Call(logits, attn_mask))
        return kernel(query, key, value, attn_mask, *args, **kwargs)

    hooks = []
    for name, module in root.named_modules():
        if re.fullmatch(path, name):
            hooks.append(module.register_forward_pre_hook(enter(name)))
            hooks.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()
