"""Keys hidden from attention: torch's kernels are called with some keys masked, whatever else they are given.

A mask is added to ``scaled_dot_product_attention``, or to the logits of a softmax that is written out. A row
whose keys are all hidden attends to nothing: its attention gives zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode

from i2am.pipeline.taps.kernels import SDPA, SOFTMAX

Hidden: TypeAlias = Callable[[int, int, torch.Tensor | None], torch.Tensor | None]
"""From the numbers of queries and keys of a call, and the keys where they are known, to the hidden ones.

[row, key] bool; None: not a call of interest.
"""

_SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class KeyMasks(TorchFunctionMode):
    """Hides keys in every attention call that is made while it is entered."""

    def __init__(self, hidden: Hidden) -> None:
        super().__init__()
        self._hidden = hidden

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is SDPA:
            return self._attention(dict(zip(_SDPA_ARGUMENTS, args, strict=False)) | kwargs)
        if func in SOFTMAX:
            return self._softmax(func, args, kwargs)
        return func(*args, **kwargs)

    def _attention(self, given: dict[str, Any]) -> Any:
        key = given["key"]
        hidden = self._hidden(given["query"].shape[-2], key.shape[-2], key) if key.ndim == 4 else None
        if hidden is None:
            return SDPA(**given)
        hide, nothing = _for_heads(hidden)
        mask = given.get("attn_mask")
        if mask is None:
            mask = ~hide
        elif mask.dtype == torch.bool:
            mask = mask & ~hide
        else:
            mask = mask.masked_fill(hide, float("-inf"))
        return SDPA(**given | {"attn_mask": mask}).masked_fill(nothing, 0)

    def _softmax(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        logits = args[0] if args else kwargs.pop("input")
        hidden = self._hidden(logits.shape[-2], logits.shape[-1], None) if logits.ndim >= 3 else None
        if hidden is None:
            return func(logits, *args[1:], **kwargs)
        hide, nothing = _for_heads(hidden)
        if logits.ndim == 3:  # [row * head, gen, key]
            heads = logits.shape[0] // hidden.shape[0]
            hide, nothing = (each[:, 0].repeat_interleave(heads, 0) for each in (hide, nothing))
        weights = func(logits.masked_fill(hide, float("-inf")), *args[1:], **kwargs)
        return weights.masked_fill(nothing, 0)


def _for_heads(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys to hide [row, 1, 1, key], and the rows [row, 1, 1, 1] that would have none left."""
    nothing = hidden.all(-1, keepdim=True)
    return (hidden & ~nothing)[:, None, None], nothing[:, None, None]
