"""Maps of one layer under the official protocol: the arithmetic of the paper's public code (METHODS.md).

Source: I²AM's repositories. Values are softmax probabilities summed over steps, not densities. R2G: each
reference token's map is resized bicubic and clamped at 0 before the mean over tokens, so stored marginals
cannot serve; a block of tokens and heads takes at most BLOCK_BYTES. G2R: a stored marginal in another unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.grids.resize import Grid, bicubic
from i2am.analysis.maps.layer_maps import MapSpec
from i2am.analysis.maps.token_sources import TokenSource
from i2am.analysis.reduction.blas_threads import one_blas_thread
from i2am.analysis.reduction.reduce import head_numbers
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.run import Run

UNITS = "softmax probability, summed over steps"

# Size of R2G maps where none is asked for; the paper's StableVITON repository has 64 x 48.
SIZE: Grid = (64, 64)
# Largest block of sums, and of logits, that is held at once, unless one token of one head has more.
BLOCK_BYTES = 32 * 2**20


def clamped_r2g(run: Run, map_spec: MapSpec, layer: LayerSpec, sample: str) -> NDArray[np.float64]:
    """R2G sums (k, y, x) of one sample and layer, each token's map resized and clamped before the mean."""
    heads = map_spec.heads or tuple(range(layer.heads))
    found = np.zeros((len(map_spec.groups), len(heads), *map_spec.size))
    for index, group in enumerate(map_spec.groups):
        for at, some, tokens in _blocks(layer, heads):
            sums = _time_sum(run, layer, sample, group, some, tokens)
            found[index, at] += _clamped_sum(sums, layer.gen_grid, map_spec.size)
    found /= layer.ref
    return found[0] if map_spec.by_head else np.asarray(found.mean(axis=1))


def summed_g2r(source: TokenSource, map_spec: MapSpec, layer: LayerSpec, sample: str) -> NDArray[np.float64]:
    """G2R sums (k, y, x) of one sample and layer, on its own grid."""
    values = source(layer, sample) / np.float64(layer.ref)
    if map_spec.heads is not None:
        values = values[:, list(map_spec.heads)]
    if map_spec.by_head:
        sums = values[list(map_spec.groups[0])].sum(axis=0)
    else:
        sums = np.stack([values[list(group)].sum(axis=0).mean(axis=0) for group in map_spec.groups])
    return np.asarray(sums.reshape(-1, *layer.ref_grid))


def _blocks(layer: LayerSpec, heads: Sequence[int]) -> Iterator[tuple[slice, list[int], slice]]:
    """Slice of the list of heads, those heads, and slice of the tokens, of each block of sums."""
    plane = layer.gen * layer.ref * 4
    many_heads = max(1, min(len(heads), BLOCK_BYTES // plane))
    many_tokens = max(1, min(layer.ref, BLOCK_BYTES // (layer.gen * 4)))
    for head in range(0, len(heads), many_heads):
        at = slice(head, min(head + many_heads, len(heads)))
        for token in range(0, layer.ref, many_tokens):
            yield at, list(heads[at]), slice(token, min(token + many_tokens, layer.ref))


def _time_sum(
    run: Run, layer: LayerSpec, sample: str, steps: Sequence[int], heads: list[int], tokens: slice
) -> NDArray[np.float32]:
    """Softmax over generated patches, summed over steps: (head, gen, token)."""
    count = tokens.stop - tokens.start
    sums = np.zeros((len(heads), layer.gen, count), dtype=np.float32)
    many = max(1, BLOCK_BYTES // (sums.nbytes + 4 * head_numbers(layer) * len(heads)))
    for start in range(0, len(steps), many):
        block = run.read(layer.name, sample, steps=list(steps[start : start + many]), heads=heads)
        with one_blas_thread(), np.errstate(all="ignore"):  # NaN and infinite logits stay NaN in the map
            logits = block.rows(slice(0, layer.gen), tokens).logits()
            weight = logits - logits.max(axis=2, keepdims=True)
            np.exp(weight, out=weight)
            weight /= weight.sum(axis=2, keepdims=True, dtype=np.float64)
            sums += weight.sum(axis=0)
    return sums


def _clamped_sum(sums: NDArray[np.float32], grid: Grid, size: Grid) -> NDArray[np.float64]:
    """Sum over tokens (head, y, x) of maps (head, gen, token) that are resized and clamped one by one."""
    heads, gen, tokens = sums.shape
    total = np.zeros((heads, *size))
    many = max(1, BLOCK_BYTES // (8 * heads * (gen + 2 * size[0] * max(size[1], grid[1]))))
    for start in range(0, tokens, many):
        maps = sums[:, :, start : start + many].swapaxes(1, 2).reshape(heads, -1, *grid)
        total += np.maximum(bicubic(maps, size), 0).sum(axis=1)
    return total
