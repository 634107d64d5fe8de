"""Lazy arrays over a run: Dask asks for a block, and only that is read and multiplied."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

from storage.run import Run
from storage.spec import LayerSpec

Array = np.ndarray[Any, Any]

BLOCK_BYTES = 128 << 20
"""Bytes that one computed block may have; a single row of reference tokens is never cut."""


class ScoresView:
    """The scores of one layer as something that can be sliced; picklable.

    Parameters
    ----------
    run : Run
        The run.
    spec : LayerSpec
        The layer.
    """

    dtype = np.dtype(np.float32)
    ndim = 5

    def __init__(self, run: Run, spec: LayerSpec) -> None:
        self.run = run
        self.spec = spec
        self.shape = (len(run.samples), len(run.timesteps), spec.heads, spec.gen, spec.ref)

    def __getitem__(self, index: tuple[slice, ...]) -> Array:
        """Read a block; `index` holds one slice for each axis."""
        samples, steps, heads, gen, ref = (range(n)[i] for n, i in zip(self.shape, index, strict=True))
        parts = []
        for sample in samples:
            block = self.run.read(self.spec, self.run.samples[sample], steps, heads)
            parts.append(block.rows(index[3], index[4]).logits())
        shape = (len(samples), len(steps), len(heads), len(gen), len(ref))
        return np.stack(parts) if parts else np.empty(shape, self.dtype)


class LseView:
    """The log-sum-exp of one layer as something that can be sliced; picklable.

    Parameters
    ----------
    run : Run
        The run.
    spec : LayerSpec
        The layer.
    """

    dtype = np.dtype(np.float32)
    ndim = 4

    def __init__(self, run: Run, spec: LayerSpec) -> None:
        self.run = run
        self.spec = spec
        self.shape = (len(run.samples), len(run.timesteps), spec.heads, spec.gen)

    def __getitem__(self, index: tuple[slice, ...]) -> Array:
        """Read a block; `index` holds one slice for each axis."""
        samples, steps, heads, gen = (range(n)[i] for n, i in zip(self.shape, index, strict=True))
        parts = [
            self.run.read_kind(self.spec, "lse", self.run.samples[sample], steps, heads)[:, :, index[3]]
            for sample in samples
        ]
        return np.stack(parts) if parts else np.empty((0, len(steps), len(heads), len(gen)), self.dtype)


def block_shape(spec: LayerSpec, steps: int, step_group: int) -> tuple[int, int, int, int, int]:
    """Choose the Dask chunk of a layer's scores.

    Parameters
    ----------
    spec : LayerSpec
        The layer.
    steps : int
        Denoiser calls of the run.
    step_group : int
        Steps that share a stored chunk.

    Returns
    -------
    tuple of int
        (1, steps, heads, gen, ref), at most `BLOCK_BYTES`: whole stored groups of steps where they fit, else
        fewer heads, else fewer rows.
    """
    row = spec.ref * 4
    head = spec.gen * row
    step = spec.heads * head
    if step <= BLOCK_BYTES:
        fit = max(1, min(steps, BLOCK_BYTES // step))
        return 1, max(fit // step_group * step_group, min(fit, step_group)), spec.heads, spec.gen, spec.ref
    if head <= BLOCK_BYTES:
        return 1, 1, BLOCK_BYTES // head, spec.gen, spec.ref
    return 1, 1, 1, max(1, BLOCK_BYTES // row), spec.ref


def _lazy(view: ScoresView | LseView, chunks: tuple[int, ...], kind: str) -> da.Array:
    from dask.tokenize import tokenize

    token = tokenize(view.run.run_id, view.run.path, view.run.samples, view.spec.name, kind, chunks)
    sizes = tuple(max(1, min(n, c)) for n, c in zip(view.shape, chunks, strict=True))
    return da.from_array(
        view, chunks=sizes, name=f"i2am-{kind}-{token}", meta=np.empty((0,) * view.ndim, np.float32)
    )


def lazy_scores(run: Run, spec: LayerSpec) -> da.Array:
    """Make the lazy array of `Run.scores`.

    Parameters
    ----------
    run : Run
        The run.
    spec : LayerSpec
        A layer of it.

    Returns
    -------
    dask.array.Array
        (sample, step, head, gen, ref) float32. Equal runs and layers give equal keys.
    """
    return _lazy(ScoresView(run, spec), block_shape(spec, len(run.timesteps), run.step_group(spec)), "scores")


def lazy_lse(run: Run, spec: LayerSpec) -> da.Array:
    """Make the lazy array of `Run.lse`.

    Parameters
    ----------
    run : Run
        The run.
    spec : LayerSpec
        A layer of it, with lse.

    Returns
    -------
    dask.array.Array
        (sample, step, head, gen) float32, one sample per block.
    """
    return _lazy(LseView(run, spec), (1, len(run.timesteps), spec.heads, spec.gen), "lse")
