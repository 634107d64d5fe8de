"""What the adapters of joint-attention transformers share: their sites, and their tokens' places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import JointSite, TokenLayout
from i2am.pipeline.adapters.defaults import Defaults
from i2am.storage.errors import CaptureError


class Joint(Defaults):
    """A transformer whose blocks attend over text, generated and reference tokens at once."""

    part = "transformer"
    blocks: tuple[str, ...] = ("transformer_blocks",)
    """Attributes of the transformer that hold its blocks, in order."""

    def sites(self, pipe: Any) -> Sequence[JointSite]:
        """The attention of every block."""
        transformer = self.denoiser(pipe)
        found = [
            JointSite(f"{self.part}.{path}.attn", attention)
            for path, block in transformer.named_modules()
            if path.rpartition(".")[0] in self.blocks
            and isinstance(attention := getattr(block, "attn", None), nn.Module)
        ]
        if not found:
            raise self._none_found(transformer, " or ".join(f"'{name}.*.attn'" for name in self.blocks))
        return found

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        """One block of rows: guidance, if on, makes a call of its own."""
        return self._known_roles(rows_per_sample, {1: ("cond",)})

    def calls(self, pipe: Any) -> tuple[str, ...]:
        """Separate calls under guidance."""
        return ("cond", "uncond")

    def _no_reference(self, expected: str, got: str, remedy: str) -> CaptureError:
        return CaptureError(
            f"adapter {self.name!r}: reference tokens of the joint sequence",
            expected=expected,
            got=got,
            remedy=remedy,
        )


def grid_of(ids: torch.Tensor) -> tuple[int, int] | None:
    """(rows, columns) of tokens whose last two ids are row and column; None if they fill no rectangle."""
    if ids.numel() == 0:
        return None
    places = ids[:, -2:].float()
    rows, columns = (int(n) for n in (places.amax(0) - places.amin(0) + 1).tolist())
    return (rows, columns) if rows * columns == len(ids) else None


def layout_of(grid: tuple[int, int]) -> TokenLayout:
    """Reference tokens that all have a place."""
    return TokenLayout(grid)
