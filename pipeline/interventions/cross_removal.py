"""Removal of tokens whose keys and values are made by projections: before these, or at the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import Site, TokenLayout
from i2am.pipeline.interventions.removal import Removal, replaced
from i2am.pipeline.taps.key_masks import Hidden
from i2am.storage.errors import CaptureError, InputError


class CrossRemoval(Removal):
    """Layers whose key and value are made by projections of the reference tokens."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._own = [
            site for site in self._sites if isinstance(site, Site) and site.reference_index == self._reference
        ]
        self._grids: dict[nn.Module, tuple[int, int]] = {}
        self._waiting: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # hidden keys, and the keys

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as hooks:
            for grid in dict.fromkeys(site.grid for site in self._own):
                hooks.callback(grid.register_forward_pre_hook(self._on_grid, with_kwargs=True).remove)
            for site in self._own:
                if self._mode == "mask":
                    hooks.callback(site.key.register_forward_hook(self._on_key(site)).remove)
                    continue
                for module in (site.key, _value_of(site)):
                    hooks.callback(module.register_forward_pre_hook(self._on_tokens(site)).remove)
            if self._mode == "mask":
                for module in dict.fromkeys(site.attention for site in self._own):
                    own = [site.name for site in self._own if site.attention is module]
                    self.mask_attention(module, self._hidden_of(own), hooks)
                    hooks.callback(module.register_forward_hook(self._check(own)).remove)
            yield

    def _on_grid(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features: Any = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
        self._grids[module] = (int(features.shape[2]), int(features.shape[3]))

    def _layout(self, site: Site, tokens: int) -> TokenLayout:
        layout = self._adapter.layout(self._pipe, site, tokens, self._grids[site.grid])
        if layout.tokens != tokens:
            raise CaptureError(
                f"layer {site.name!r}: reference tokens", expected=str(layout.tokens), got=str(tokens),
                remedy="give one reference image for each sample",
            )  # fmt: skip
        return layout

    def _on_tokens(self, site: Site) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            given = args[0]
            tokens = given.flatten(1, -2)
            rows = self._roles.rows(len(tokens))
            if rows is None:
                return None
            layout = self._layout(site, tokens.shape[1])
            gone = self.gone(site.name, layout)
            if self._mode == "mean" and gone.any() and layout.tokens - _unaveraged(layout) == 1:
                raise InputError(
                    f"mode of layer {site.name!r}",
                    expected="empty or mask, for a single token",
                    got="mean, which is the token itself",
                    remedy="choose one of these",
                )
            changed = tokens.clone()
            new = self._replacement(tokens, rows, layout)
            changed[rows] = replaced(tokens[rows], gone, new)
            return (changed.reshape(given.shape), *args[1:])

        return hook

    def _replacement(self, tokens: torch.Tensor, rows: slice, layout: TokenLayout) -> torch.Tensor:
        own = tokens[rows]
        if self._mode == "mean":
            return own[:, _unaveraged(layout) :].mean(1, keepdim=True)
        without = self._roles.rows(len(tokens), "uncond")
        empty = self._adapter.empty_reference(self._pipe, own, None if without is None else tokens[without])
        if empty is None or (without is not None and torch.equal(empty, own)):
            raise CaptureError(
                f"adapter {self._adapter.name!r}: the empty token, in place of a removed one",
                expected="unconditional rows without the reference in the same call",
                got="none" if empty is None else "rows with it",
                remedy="generate with guidance in one batch, or use mode "
                + ("mask" if own.shape[1] == 1 else "mean or mask"),
            )
        return empty

    def _on_key(self, site: Site) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            keys = output.flatten(1, -2)
            rows = self._roles.rows(len(keys))
            if rows is None:
                return
            hidden = torch.zeros(keys.shape[:2], dtype=torch.bool, device=keys.device)
            hidden[rows] = self.gone(site.name, self._layout(site, keys.shape[1])).to(keys.device)
            self._waiting[site.name] = hidden, output

        return hook

    def _hidden_of(self, names: Sequence[str]) -> Hidden:
        def hidden(queries: int, tokens: int, keys: torch.Tensor | None) -> torch.Tensor | None:
            fitting = {
                name: self._waiting[name]
                for name in names
                if name in self._waiting and self._waiting[name][0].shape[1] == tokens
            }
            if keys is not None and len(fitting) > 1:  # several references of one size
                fitting = {
                    name: each for name, each in fitting.items() if each[1].data_ptr() == keys.data_ptr()
                }
            if len(fitting) != 1:
                return None
            return self._waiting.pop(next(iter(fitting)))[0]

        return hidden

    def _check(self, names: Sequence[str]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if left := [name for name in names if name in self._waiting]:
                self._waiting.clear()
                raise self.unmasked(left[0])

        return hook


def _unaveraged(layout: TokenLayout) -> int:
    """Leading tokens that the mean leaves out: those without a place, where others have one."""
    return layout.prefix if layout.grid[0] * layout.grid[1] else 0


def _value_of(site: Site) -> nn.Module:
    """The projection of values: ``to_v`` beside ``to_k``, ``to_v_ip.0`` beside ``to_k_ip.0``."""
    holders = (site.attention, getattr(site.attention, "processor", None))
    for holder in (each for each in holders if isinstance(each, nn.Module)):
        for path, module in holder.named_modules():
            if module is site.key:
                return holder.get_submodule(path.replace("to_k", "to_v", 1))
    raise CaptureError(
        f"layer {site.name!r}: its value projection",
        expected="to_v beside to_k",
        got="another name",
        remedy="use mode mask",
    )
