"""What the chunk of an aggregation sees: some steps and heads of one layer and sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.grids import regions
from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.selection import spatial_tokens
from i2am.analysis.reduction.logits import Float32, Logits
from i2am.storage.errors import InputError
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.run import Run


@dataclass(frozen=True)
class Attention:
    """The attention of some steps and heads, and maybe of some generated patches, of one layer and sample."""

    run: Run
    layer: LayerSpec
    sample: str
    steps: tuple[int, ...]  # indices in the run
    heads: tuple[int, ...]
    gen: slice  # the generated patches; all of them unless the aggregation is declared with rows=True
    logits: Logits | None = None  # query and key, or stored scores; None over marginals
    # Over marginals: "r2g" (step, head, gen) and "g2r" (step, head, ref), densities, 1 for uniform attention,
    # and the other quantities of `i2am.analysis.marginals.quantities`; else empty.
    marginals: Mapping[str, Float32] = field(default_factory=dict)

    @cached_property
    def scores(self) -> Float32:
        """Scaled logits (step, head, gen, ref), float32."""
        if self.logits is None:
            raise InputError(
                "scores of an aggregation over marginals",
                expected='over="scores"',
                remedy="declare it so",
            )
        return self.logits.whole()

    def probabilities(self, direction: Direction = "g2r") -> Float32:
        """Softmax of the logits, a new array (step, head, gen, ref), 0 to 1.

        "g2r": over the reference tokens. "r2g": over the generated patches; `InputError` for some of them.
        """
        if direction == "r2g" and self.gen != slice(0, self.layer.gen):
            raise InputError(
                "r2g of some generated patches",
                expected="all of them: the softmax is over them",
                remedy="declare the aggregation with rows=False",
            )
        axis = -1 if direction == "g2r" else -2
        with np.errstate(invalid="ignore", over="ignore"):
            powers: Float32 = self.scores - self.scores.max(axis=axis, keepdims=True)
            np.exp(powers, out=powers)
            powers /= powers.sum(axis=axis, keepdims=True)
        return powers

    def inside(self, image: str, side: str = "gen") -> NDArray[np.float32] | None:
        """How much of each patch a mask image of this sample covers, 0 to 1; None where it has none.

        `side` "gen": of the generated patches of this piece. "ref": of the reference tokens with a place.
        """
        pixels = regions.sample_image(self.run, image, self.sample)
        if pixels is None:
            return None
        grid = self.layer.gen_grid if side == "gen" else self.layer.ref_grid
        covered = regions.token_weights(regions.image_mask(pixels), grid)
        return covered[self.gen] if side == "gen" else covered

    @property
    def placed(self) -> slice:
        """The reference tokens that have a place, `ref_grid` of them in order."""
        count = spatial_tokens(self.layer)
        return slice(self.layer.ref_prefix, self.layer.ref_prefix + count) if count else slice(0, 0)
