"""An independent witness of the model's own attention: the explicit kernel, with its inputs kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import nn


@contextmanager
def attention_witness(unet: nn.Module) -> Iterator[dict[str, list[tuple[torch.Tensor, torch.Tensor]]]]:
    """Run ``unet`` with the explicit kernel; (logits, probabilities) [row * head, gen, ref] of each call.

    Nothing of the project is used: the logits come from the query and key that reach the model's own
    ``get_attention_scores``, in double precision; the probabilities are what the model multiplies with.
    """
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    layers = {
        m: f"unet.{n}" for n, m in unet.named_modules() if isinstance(m, Attention) and n.endswith("attn2")
    }
    processors, original = unet.attn_processors, Attention.get_attention_scores

    def scores(self, query, key, attention_mask=None):  # type: ignore[no-untyped-def]
        probabilities = original(self, query, key, attention_mask)
        if self in layers:
            logits = query.double() @ key.double().transpose(-1, -2) * self.scale
            seen.setdefault(layers[self], []).append((logits.detach(), probabilities.detach()))
        return probabilities

    unet.set_attn_processor(AttnProcessor())
    Attention.get_attention_scores = scores
    try:
        yield seen
    finally:
        Attention.get_attention_scores = original
        unet.set_attn_processor(processors)
