"""The mirror of faithfulness: whether R2G of a reference patch says where the image changes without it.

The reference is cut into blocks. For each, what the maps of its tokens predict on the generated image is
compared with the change that the image shows once the block is removed: Spearman's rank correlation over the
cells inside the mask. Predictors: ``r2g``, ``daam`` (each cell's probability of the block's tokens), and
``r2g-all``, R2G of all tokens, which knows nothing of the block. Tokens without a place are one block: there
``r2g``, of one token a similarity, stands beside ``contribution``, what the reference adds to each patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from i2am.analysis.experiments.correlation import coefficient
from i2am.analysis.experiments.faithfulness import PIXELS, SUMMARY
from i2am.analysis.experiments.token_ranks import Grid
from i2am.analysis.grids.resize import area, linear
from i2am.analysis.grids.selection import select
from i2am.analysis.grids.tiled_layers import (
    largest_grid,
    layer_grid,
    layer_weights,
    map_size,
    merge_tiles,
)
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.maps.token_sources import Method
from i2am.analysis.marginals.quantities import Regions, compute_marginals, quantity_name
from i2am.analysis.scores.bootstrap import CONFIDENCE, mean_intervals
from i2am.storage.errors import InputError, NoAnswer
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.run import Run

Block = tuple[int, int]  # row and column

BLOCKS = 4
"""Blocks on a side of the reference."""

PATCHES: Mapping[str, Any] = {
    "sample": pl.String,
    "row": pl.Int64,  # of the block
    "column": pl.Int64,
    "predictor": pl.String,
    "correlation": pl.Float64,  # null where nothing changed, or where the map is constant
    "change": pl.Float64,  # mean inside the mask
}
"""Columns of the table of patches, with their types."""


def block_masks(grid: Grid, blocks: int = BLOCKS) -> dict[Block, NDArray[np.bool_]]:
    """Masks [row, column] of the reference's tokens, by row and column of a block; they cover all."""
    if not 1 <= blocks <= min(grid):
        raise InputError(
            "blocks",
            expected=f"1 to {min(grid)}, the tokens on a side",
            got=str(blocks),
            remedy="choose fewer, or 0 for none",
        )
    rows, columns = (np.arange(n) * blocks // n for n in grid)
    found = {}
    for row in range(blocks):
        for column in range(blocks):
            found[row, column] = (rows[:, None] == row) & (columns == column)
    return found


def predicted_maps(
    run: Run, sample: str, blocks: Mapping[Block, NDArray[np.bool_]]
) -> dict[str, NDArray[np.float64]]:
    """Maps [block, y, x] on the largest generated grid, by predictor, from one pass over the attention."""
    layers = select(run, "r2g", on_reference=True).layers
    size = largest_grid(layers, "gen")
    everything = np.ones(next(iter(blocks.values())).shape)
    regions = {"all": everything} | {f"{row},{column}": mask for (row, column), mask in blocks.items()}
    parts: dict[str, list[NDArray[np.float64]]] = {"r2g": [], "daam": []}
    for layer in layers:
        weights = {name: layer_weights(layer, "ref", mask.astype(float)) for name, mask in regions.items()}
        found = compute_marginals(run, layer, sample, Regions(ref=weights))
        for kind, own in parts.items():
            means = np.stack([found[quantity_name(kind, name)].mean((0, 1)) for name in regions])
            grid = layer_grid(layer, "gen")
            own.append(linear(means.reshape(-1, *grid), map_size(layer, "r2g", size)))
    maps = {
        kind: np.concatenate([_merged(own, number, layers, size) for number in range(len(regions))])
        for kind, own in parts.items()
    }
    constant = np.repeat(maps["r2g"][:1], len(blocks), 0)
    return {"r2g": maps["r2g"][1:], "daam": maps["daam"][1:], "r2g-all": constant}


def predicted_by_whole(run: Run, sample: str, size: Grid) -> dict[str, NDArray[np.float64]]:
    """Maps [1, y, x] of a reference without places, by predictor, as far as the run has them."""
    methods: Mapping[str, Method] = {"r2g": "i2am", "contribution": "contribution"}
    found = {}
    for predictor, method in methods.items():
        with suppress(NoAnswer):  # captured without norms
            maps = attribution_maps(run, "r2g", samples=[sample], size=size, method=method)
            found[predictor] = np.asarray(maps, dtype=np.float64)
    return found


def _merged(
    maps: list[NDArray[np.float64]], number: int, layers: Sequence[LayerSpec], size: Grid
) -> NDArray[np.float64]:
    """Mean over layers of one region's maps, [1, y, x]."""
    own = [values[number : number + 1] for values in maps]
    return np.asarray(np.mean(merge_tiles(own, layers, "r2g", size), axis=0))


def correlate(
    sample: str,
    predicted: Mapping[str, NDArray[np.float64]],
    changes: Mapping[Block, NDArray[np.float64]],
    mask: NDArray[np.bool_] | None,
) -> list[dict[str, Any]]:
    """Rows of the table of patches; ``changes`` [y, x] by block have the size of the predicted maps."""
    rows = []
    for number, ((row, column), change) in enumerate(changes.items()):
        inside = np.ones(change.shape, bool) if mask is None else area(mask, change.shape) >= 0.5
        for predictor, maps in predicted.items():
            found, _ = coefficient("spearman", maps[number][inside], change[inside])
            rows.append(
                {
                    "sample": sample,
                    "row": row,
                    "column": column,
                    "predictor": predictor,
                    "correlation": None if np.isnan(found) else found,
                    "change": float(change[inside].mean()) if inside.any() else None,
                }
            )
    return rows


def summarise_patches(patches: pl.DataFrame, confidence: float = CONFIDENCE) -> pl.DataFrame:
    """Mean correlation of each predictor, with its interval over samples, as rows of the summary.

    The blocks of a sample count by how much the image changed without them: where nothing changed, there is
    no place to predict.
    """
    rows = []
    by_sample = (
        patches.drop_nulls("correlation")
        .group_by("predictor", "sample", maintain_order=True)
        .agg((pl.col("correlation") * pl.col("change")).sum() / pl.col("change").sum())
    )
    for (predictor,), group in by_sample.group_by("predictor", maintain_order=True):
        found = mean_intervals(group["correlation"].to_numpy()[:, None], confidence)
        ends = {"low": found.low[0], "high": found.high[0]}
        rows.append(
            {"measure": "correlation", "rank": predictor, "kind": "deletion"}
            | {"distance": PIXELS, "region": "inside"}
            | {"value": float(found.mean[0]), "count": int(found.count[0])}
            | {name: float(end) if np.isfinite(end) else None for name, end in ends.items()}
        )
    return pl.DataFrame(rows, schema=SUMMARY)
