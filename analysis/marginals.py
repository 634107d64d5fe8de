"""Marginals: both directions of one sample and layer from one read of the store.

Source: I²AM, R2G and G2R; PAPER's corrected protocol. Quantities, each float32 with 1 for uniform attention:

- ``r2g`` (step, head, gen): R2G density, mean over the reference tokens that have a place (over all, where
  none has).
- ``g2r`` (step, head, ref): G2R density of the placed tokens, mean over the generated patches. The softmax
  runs over all
  tokens, class token included, as in the model.
- ``r2g@reference_mask``, ``g2r@mask``: the same, over the tokens of the reference object only, and over the
  patches that were
  painted only; present where the run holds those images. NaN where that mask is empty.

The unified, time, head and layer levels are means of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis import region
from analysis.selection import Direction, has_place, placed
from analysis.softmax import Logits, project

if TYPE_CHECKING:
    from storage import LayerSpec, Run

READ_BYTES = 64 * 2**20
"""Raw bytes that one read of the store brings into memory, unless a single head of a single step has more."""

FOCUS: Mapping[Direction, str] = {"r2g": "reference_mask", "g2r": "mask"}
"""The image of the run, per direction, whose region has a marginal of its own."""

Marginals = dict[str, NDArray[np.float32]]


def quantity(direction: Direction, image: str | None = None) -> str:
    """Name of a marginal: the direction, and the image whose region it is restricted to."""
    return direction if image is None else f"{direction}@{image}"


def quantities(run: Run, layer: LayerSpec) -> dict[str, int]:
    """Names of the marginals that a layer of a run has, with their number of tokens."""
    tokens: dict[Direction, int] = {"r2g": layer.gen, "g2r": placed(layer)}
    found: dict[str, int] = {}
    for direction, count in tokens.items():
        if direction == "r2g" or has_place(layer):
            found[quantity(direction)] = count
        if FOCUS[direction] in run.images and has_place(layer):
            found[quantity(direction, FOCUS[direction])] = count
    return found


def measure(
    run: Run,
    layer: LayerSpec,
    sample: str,
    gen_weights: Mapping[str, NDArray[np.float32]],
    ref_weights: Mapping[str, NDArray[np.float32]],
) -> Marginals:
    """Weighted mean densities of one sample and layer, from one read of the store.

    Parameters
    ----------
    run, layer, sample
        What to read.
    gen_weights
        For each G2R quantity, the weights (gen) of the generated patches.
    ref_weights
        For each R2G quantity, the weights (placed ref) of the reference tokens; of all tokens where none has
        a place.

    Returns
    -------
    dict
        (step, head, gen) for each name in `ref_weights`, (step, head, placed ref) for each in `gen_weights`.

    Raises
    ------
    DamagedSample
        If the stored data is not what was written.
    """
    prefix = layer.ref_prefix if placed(layer) else 0
    left = np.stack([*gen_weights.values()]) if gen_weights else np.ones((1, layer.gen), dtype=np.float32)
    right = np.zeros((max(1, len(ref_weights)), layer.ref), dtype=np.float32)
    for row, weight in enumerate(ref_weights.values()):
        right[row, prefix:] = weight
    steps = len(run.timesteps)
    found = {
        name: np.empty((steps, layer.heads, layer.ref - prefix), dtype=np.float32) for name in gen_weights
    }
    found |= {name: np.empty((steps, layer.heads, layer.gen), dtype=np.float32) for name in ref_weights}
    for part, heads in _parts(layer, steps):
        block = run.read(layer.name, sample, steps=part, heads=heads)
        logits = Logits(query=block.query, key=block.key, scores=block.scores, scale=float(block.scale))
        g2r, r2g = project(logits, left, right)
        for row, name in enumerate(gen_weights):
            found[name][part, heads] = g2r[:, :, row, prefix:]
        for row, name in enumerate(ref_weights):
            found[name][part, heads] = r2g[:, :, row]
    return found


def _parts(layer: LayerSpec, steps: int) -> Iterator[tuple[slice, slice]]:
    """Slices of steps and heads, each read of which stays within READ_BYTES."""
    numbers = (
        layer.gen * layer.ref
        if layer.representation == "scores"
        else (layer.gen + layer.ref) * layer.head_dim
    )
    head_bytes = numbers * (2 if layer.dtype == "float16" else 4)
    many_heads = max(1, min(layer.heads, READ_BYTES // head_bytes))
    many_steps = max(1, READ_BYTES // (head_bytes * layer.heads)) if many_heads == layer.heads else 1
    for step in range(0, steps, many_steps):
        for head in range(0, layer.heads, many_heads):
            yield slice(step, min(step + many_steps, steps)), slice(head, min(head + many_heads, layer.heads))


def compute_marginals(run: Run, layer: LayerSpec, sample: str) -> Marginals:
    """All marginals of one sample and layer, computed from the store.

    Parameters
    ----------
    run, layer, sample
        What to read.

    Returns
    -------
    dict
        Quantity to float32 array (step, head, token), as listed by `quantities`.

    Raises
    ------
    DamagedSample
        If the stored data is not what was written.
    """
    names = quantities(run, layer)
    gen: dict[str, NDArray[np.float32]] = {}
    ref: dict[str, NDArray[np.float32]] = {}
    whole = np.ones(placed(layer) or layer.ref, dtype=np.float32)
    for name in names:
        direction, _, image = name.partition("@")
        if not image:
            (gen if direction == "g2r" else ref)[name] = (
                np.ones(layer.gen, dtype=np.float32) if direction == "g2r" else whole
            )
            continue
        grid = layer.gen_grid if direction == "g2r" else layer.ref_grid
        pixels = region.sample_image(run, image, sample)
        # A sample without the image has an empty region: its marginal is NaN, the others' are not touched.
        mask = np.zeros(grid, dtype=bool) if pixels is None else region.image_mask(pixels)
        (gen if direction == "g2r" else ref)[name] = region.weights(mask, grid)
    return measure(run, layer, sample, gen, ref)
