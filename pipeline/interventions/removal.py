"""What removals in cross-attention and in joint attention share: what goes, and masks at a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from i2am.pipeline.adapters.contract import Adapter, AnySite, TokenLayout
from i2am.pipeline.interventions.call_roles import CallRoles
from i2am.pipeline.taps.key_masks import Hidden, KeyMasks
from i2am.storage.errors import CaptureError, InputError

Mode: TypeAlias = Literal["empty", "mean", "latent", "mask"]


class Removal:
    """What both kinds of attention share: which tokens of a layer are removed, and masks at its kernel."""

    def __init__(
        self,
        pipe: Any,
        adapter: Adapter,
        sites: Sequence[AnySite],
        removed: torch.Tensor,
        mode: Mode,
        roles: CallRoles,
        reference: int,
    ) -> None:
        self._pipe, self._adapter, self._sites = pipe, adapter, tuple(sites)
        self._removed, self._mode, self._roles, self._reference = removed, mode, roles, reference
        self._done = False

    def check_done(self) -> None:
        """Refuse a generation in which nothing could be removed."""
        if not self._done:
            raise CaptureError(
                "ablation of reference tokens",
                expected="conditional rows of a layer whose tokens have a place in the reference",
                got="none in any denoiser call",
                remedy="choose other layers, or give the tokens: removed as [sample, token]",
            )

    def gone(self, name: str, layout: TokenLayout) -> torch.Tensor:
        """Tokens of a layer to remove, bool [sample, token]."""
        if self._removed.ndim == 2:
            if self._removed.shape[1] != layout.tokens:
                raise InputError(
                    f"removed tokens of layer {name!r}",
                    expected=f"{layout.tokens} for each sample",
                    got=str(self._removed.shape[1]),
                    remedy="leave the layer out with layers=, or give places: [sample, row, column]",
                )
            self._done = True
            return self._removed
        prefix = torch.zeros(len(self._removed), layout.prefix, dtype=torch.bool)
        if not layout.grid[0] * layout.grid[1]:
            return prefix
        self._done = True
        share = F.adaptive_avg_pool2d(self._seen_by_tile(self._removed[:, None].float()), layout.grid)
        return torch.cat([prefix, share.flatten(1) >= 0.5], 1)

    def _seen_by_tile(self, planes: torch.Tensor) -> torch.Tensor:
        """The part of the reference that the current tile of the latents sees."""
        tile = self._roles.tile
        if tile is None or self._adapter.shared_reference(self._pipe):
            return planes
        canvas = F.interpolate(planes, (tile.canvas_rows, tile.canvas_columns), mode="nearest-exact")
        return canvas[..., tile.top : tile.top + tile.rows, tile.left : tile.left + tile.columns]

    def mask_attention(self, module: nn.Module, hidden: Hidden, hooks: ExitStack) -> None:
        """Hide keys in the kernel call of an attention module; none seen is an error."""
        modes: list[KeyMasks] = []

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            modes.append(KeyMasks(hidden))
            modes[-1].__enter__()  # type: ignore[no-untyped-call]

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            modes.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

        hooks.callback(module.register_forward_pre_hook(enter).remove)
        hooks.callback(module.register_forward_hook(leave, always_call=True).remove)

    def unmasked(self, name: str) -> CaptureError:
        return CaptureError(
            f"layer {name!r}: its attention call",
            expected="one of torch's scaled_dot_product_attention, or a softmax",
            got="none of its size, or several",
            remedy="use a processor that calls one of them, or another mode",
        )


def replaced(tokens: torch.Tensor, gone: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Tokens [sample, token, ...], those that are gone replaced by ``new``."""
    gone = gone.to(tokens.device)[(..., *[None] * (tokens.ndim - 2))]
    return torch.where(gone, new.to(tokens), tokens)
