"""A witness at the kernel: what reaches SDPA, or a softmax that is written out, inside chosen modules."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Call:
    """One kernel call: logits [row, head, query, key] in double precision, and a mask.

    Of a written-out softmax: its input as it is, [row * head, query, key].
    """

    logits: torch.Tensor
    mask: torch.Tensor | None


@contextmanager
def kernel_witness(root: nn.Module, path: str, monkeypatch) -> Iterator[dict[str, list[list[Call]]]]:
    """Calls by module path, a list for each forward of the module. Nothing of the project is used."""
    seen: dict[str, list[list[Call]]] = {}
    inside: list[str] = []
    thread = threading.get_ident()
    kernel, softmax = F.scaled_dot_product_attention, torch.Tensor.softmax

    def enter(name):
        def hook(module, args):
            if threading.get_ident() != thread:
                return
            inside.append(name)
            seen.setdefault(name, []).append([])

        return hook

    def spy(query, key, value, attn_mask=None, *args, **kwargs):
        if inside and threading.get_ident() == thread:
            logits = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
            seen[inside[-1]][-1].append(Call(logits, attn_mask))
        return kernel(query, key, value, attn_mask, *args, **kwargs)

    def softmax_spy(logits, *args, **kwargs):
        if inside and threading.get_ident() == thread:
            seen[inside[-1]][-1].append(Call(logits.detach().flatten(0, -3).clone(), None))
        return softmax(logits, *args, **kwargs)

    def leave(*_):
        if inside and threading.get_ident() == thread:
            inside.pop()

    hooks = []
    for name, module in root.named_modules():
        if re.fullmatch(path, name):
            hooks.append(module.register_forward_pre_hook(enter(name)))
            hooks.append(module.register_forward_hook(leave))
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        patch.setattr(torch.Tensor, "softmax", softmax_spy)
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()
