"""What the adapters of canvases share: the tokens of a region, and those of the other side."""

from __future__ import annotations

from functools import lru_cache

import torch

from i2am.pipeline.adapters.contract import Adapter, TokenLayout, Tokens
from i2am.pipeline.adapters.region import Region
from i2am.storage.errors import CaptureError

_NEAR = 0.01
"""Of a token: how far a border may lie from that of a row or column, as shares have few digits."""


class Canvas(Adapter):
    """A model whose picture holds its reference on one side."""

    takes_region = True

    def split(
        self, layer: str, grid: tuple[int, int], device: torch.device, start: int = 0
    ) -> tuple[Tokens, Tokens]:
        """Generated and reference tokens of a layer; its canvas (rows, columns) begins at ``start``."""
        if self.region is None:
            raise CaptureError(
                f"adapter {self.name!r}: the side of the canvas that is the reference",
                expected="a region",
                got="none",
                remedy="give it: capture(reference_region='left'), or {'left': 0.4}; elsewhere "
                "adapter=find_adapter(pipe, region='left')",
            )
        side, share = self.region.side, self.region.share
        unit, size = ("rows", grid[0]) if side in ("top", "bottom") else ("columns", grid[1])
        border = round(size * share)
        if abs(border - size * share) > _NEAR or not 0 < border < size:
            raise CaptureError(
                f"layer {layer!r}: the reference's region",
                expected=f"a border between two of its {size} {unit}",
                got=f"{side} {share:g}, which is {size * share:.6g} of them",
                remedy="leave the layer out with layers=, or choose another size or region",
            )
        return _split(self.region, border, grid, device, start)

    def check_kept(self, painted: torch.Tensor, reference: Tokens) -> None:
        """Refuse a region that the pipeline's mask [row, token] paints: it would be no reference."""
        if bool(painted[:, reference.where].any()):
            raise CaptureError(
                f"adapter {self.name!r}: the reference's region",
                expected="a side of the canvas that the mask leaves as it is",
                got=f"{self.region.to_json() if self.region else None}, where something is painted",
                remedy="name the other side, or its share: reference_region='left', or {'left': 0.4}",
            )


@lru_cache(maxsize=64)
def _split(
    region: Region, border: int, grid: tuple[int, int], device: torch.device, start: int
) -> tuple[Tokens, Tokens]:
    """The same object for each call: the witness knows the places of tokens by it."""
    rows, columns = grid
    first = region.side in ("top", "left")
    if region.side in ("top", "bottom"):
        cut = border if first else rows - border
        above = Tokens.after(start, TokenLayout((cut, columns)))
        one, other = above, Tokens.after(start + cut * columns, TokenLayout((rows - cut, columns)))
    else:
        cut = border if first else columns - border
        places = torch.arange(start, start + rows * columns, device=device).view(grid)
        one = Tokens(places[:, :cut].flatten(), TokenLayout((rows, cut)))
        other = Tokens(places[:, cut:].flatten(), TokenLayout((rows, columns - cut)))
    return (other, one) if first else (one, other)
