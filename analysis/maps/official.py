"""Maps of one layer under the official protocol: the arithmetic of the paper's public code.

Source: I²AM's repositories. Values are softmax probabilities summed over steps, not densities: a coarse
layer's are larger than a fine layer's in proportion to its cells, and more steps give larger values.

- R2G: softmax over the generated patches; sum over the steps of a group; each reference token's map, class
  tokens included, resized bicubic and clamped at 0; mean over tokens and heads. The clamp makes the order
  matter: tokens are not averaged before it.
- G2R: softmax over the reference tokens; sum over the steps of a group; mean over queries and heads; on the
  layer's own grid, never resized. It is a stored marginal in another unit.

Memory: the R2G sums of a block of tokens and heads, their logits and weights, are at most BLOCK_BYTES each. A
layer too large for one block of tokens is read once for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.grids.resize import Grid, bicubic
from i2am.analysis.maps.layer_maps import Plan
from i2am.analysis.reduction.blas_threads import one_blas_thread

if TYPE_CHECKING:
    from i2am.analysis.maps.token_sources import Tokens
    from i2am.storage.format.layer_spec import LayerSpec
    from i2am.storage.reading.run import Run

UNITS = "softmax probability, summed over steps"

SIZE: Grid = (64, 64)
"""Size of R2G maps where none is asked for; the paper's StableVITON repository has 64 x 48."""

BLOCK_BYTES = 32 * 2**20
"""Largest block of sums, and of logits, that is held at once, unless one token of one head has more."""


def clamped_r2g(run: Run, plan: Plan, spec: LayerSpec, sample: str) -> NDArray[np.float64]:
    """R2G sums of one sample and layer, each token's map resized and clamped before the mean."""
    heads = plan.heads or tuple(range(spec.heads))
    found = np.zeros((len(plan.groups), len(heads), *plan.size))
    for index, group in enumerate(plan.groups):
        for at, some, tokens in _blocks(spec, heads):
            sums = _time_sum(run, spec, sample, group, some, tokens)
            found[index, at] += _clamped_sum(sums, spec.gen_grid, plan.size)
    found /= spec.ref
    return found[0] if plan.by_head else np.asarray(found.mean(axis=1))


def summed_g2r(tokens: Tokens, plan: Plan, spec: LayerSpec, sample: str) -> NDArray[np.float64]:
    """G2R sums of one sample and layer, on its own grid."""
    values = tokens(spec, sample) / np.float64(spec.ref)
    if plan.heads is not None:
        values = values[:, list(plan.heads)]
    if plan.by_head:
        kept = values[list(plan.groups[0])].sum(axis=0)
    else:
        kept = np.stack([values[list(group)].sum(axis=0).mean(axis=0) for group in plan.groups])
    return np.asarray(kept.reshape(-1, *spec.ref_grid))


def _blocks(spec: LayerSpec, heads: Sequence[int]) -> Iterator[tuple[slice, list[int], slice]]:
    """Places in the list of heads, the heads there, and the tokens, of each block of sums."""
    plane = spec.gen * spec.ref * 4
    many_heads = max(1, min(len(heads), BLOCK_BYTES // plane))
    many_tokens = max(1, min(spec.ref, BLOCK_BYTES // (spec.gen * 4)))
    for head in range(0, len(heads), many_heads):
        at = slice(head, min(head + many_heads, len(heads)))
        for token in range(0, spec.ref, many_tokens):
            yield at, list(heads[at]), slice(token, min(token + many_tokens, spec.ref))


def _time_sum(
    run: Run, spec: LayerSpec, sample: str, steps: Sequence[int], heads: list[int], tokens: slice
) -> NDArray[np.float32]:
    """Softmax over generated patches, summed over steps: (head, gen, token)."""
    count = tokens.stop - tokens.start
    sums = np.zeros((len(heads), spec.gen, count), dtype=np.float32)
    many = max(1, BLOCK_BYTES // (sums.nbytes + _raw_bytes(spec) * len(heads)))
    for start in range(0, len(steps), many):
        block = run.read(spec.name, sample, steps=list(steps[start : start + many]), heads=heads)
        with one_blas_thread(), np.errstate(all="ignore"):  # NaN and infinite logits stay NaN in the map
            logits = block.rows(slice(0, spec.gen), tokens).logits()
            weight = logits - logits.max(axis=2, keepdims=True)
            np.exp(weight, out=weight)
            weight /= weight.sum(axis=2, keepdims=True, dtype=np.float64)
            sums += weight.sum(axis=0)
    return sums


def _raw_bytes(spec: LayerSpec) -> int:
    """Bytes, at most, that one step and head of a layer has in the store."""
    scores = spec.representation == "scores"
    return 4 * (spec.gen * spec.ref if scores else (spec.gen + spec.ref) * spec.head_dim)


def _clamped_sum(sums: NDArray[np.float32], grid: Grid, size: Grid) -> NDArray[np.float64]:
    """Sum over tokens (head, y, x) of maps (head, gen, token) that are resized and clamped one by one."""
    heads, gen, tokens = sums.shape
    total = np.zeros((heads, *size))
    many = max(1, BLOCK_BYTES // (8 * heads * (gen + 2 * size[0] * max(size[1], grid[1]))))
    for start in range(0, tokens, many):
        maps = sums[:, :, start : start + many].swapaxes(1, 2).reshape(heads, -1, *grid)
        total += np.maximum(bicubic(maps, size), 0).sum(axis=1)
    return total
