"""Log-sum-exp of attention rows over all keys, in blocks of rows, so that no full matrix is ever made."""

from __future__ import annotations

import torch

_BLOCK_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Bytes of float32 logits in one block."""


def row_logsumexp(
    query: torch.Tensor, key: torch.Tensor, scale: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """For each query, log of the sum over all keys of exp(scale q·k): [row, head, token], in float32.

    ``query`` and ``key`` are [row, token, head, dim]; ``mask`` is broadcastable to [row, head, token, key]:
    boolean, True where a key counts, or added to the logits.
    """
    with torch.autocast(query.device.type, enabled=False):
        return _in_blocks(query, key, scale, mask)


def _in_blocks(
    query: torch.Tensor, key: torch.Tensor, scale: float, mask: torch.Tensor | None
) -> torch.Tensor:
    rows, tokens, heads, _ = query.shape
    keys = key.transpose(1, 2).float().transpose(-1, -2)
    limit = _BLOCK_BYTES.get(query.device.type, _BLOCK_BYTES["cpu"])
    block = max(1, limit // (4 * rows * heads * keys.shape[-1]))
    found = torch.empty((rows, heads, tokens), dtype=torch.float32, device=query.device)
    for start in range(0, tokens, block):
        part = slice(start, start + block)
        logits = torch.matmul(query[:, part].transpose(1, 2).float() * scale, keys)
        if mask is not None:
            _apply(logits, mask if mask.shape[-2] == 1 else mask[..., part, :])
        torch.logsumexp(logits, -1, out=found[..., part])
    return found


def _apply(logits: torch.Tensor, mask: torch.Tensor) -> None:
    if mask.dtype == torch.bool:
        logits.masked_fill_(~mask, float("-inf"))
    else:
        logits += mask
