"""The projection tap: q and k as the model itself computed them, read from the outputs of its projections.

Nothing stands between these outputs and the scores but the reshape into heads and the scale, so the tap
serves every attention kernel (einsum, SDPA, xformers) and never computes anything twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn

from i2am.pipeline.adapters.contract import AnySite, Site, TokenLayout, Tokens
from i2am.pipeline.taps.guard import Guard
from i2am.storage.errors import CaptureError


@dataclass(frozen=True, slots=True)
class QueryKey:
    """What one call of a layer computed. The tensors are the model's own: copy before returning."""

    site: AnySite
    query: torch.Tensor  # [row, token, head, head dim], before the scale
    key: torch.Tensor  # as `query`
    grid: tuple[int, int]  # (rows, columns) of the generated tokens, as recorded
    scale: float  # factor on q·k
    layout: TokenLayout | None = None  # order of the reference tokens, if the tap knows it
    lse: torch.Tensor | None = None  # log-sum-exp over all keys, [row, head, token] float32
    part: str = ""  # tells several references of one layer apart: "reference-1", "text"
    query_of: str = ""  # the layer whose query this is too, if it was received before
    static_key: bool = False  # the key does not change over time
    places: tuple[Tokens, Tokens] | None = None  # (query, key) among the kernel's; None: they are all of them
    tokens: tuple[int, int] | None = None  # (queries, keys) of the kernel, where there are places
    roles: tuple[str, ...] = ()  # as in `Spans`


Receive: TypeAlias = Callable[[QueryKey], None]
"""Called once for each call of a layer, as soon as query and key both exist."""


class ProjectionTap:
    """Forward hooks on the projections of ``sites``, which may share a query; they only read.

    ``detach=False`` passes on tensors through which a loss can flow back.
    """

    def __init__(self, sites: Sequence[Site], receive: Receive, guard: Guard, detach: bool = True) -> None:
        self._sites, self._receive, self._guard, self._detach = tuple(sites), receive, guard, detach
        self._grids: dict[nn.Module, tuple[int, int]] = {}
        self._queries: dict[str, torch.Tensor] = {}
        self._keys: dict[str, torch.Tensor] = {}
        self._first: dict[nn.Module, str] = {}  # of the layers with one query, the one received first

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Register every hook; where one registration fails, the earlier ones are removed."""
        with ExitStack() as hooks:
            hooks.callback(self.reset)
            for grid in dict.fromkeys(site.grid for site in self._sites):
                on_grid = self._guard(self._on_grid)
                hooks.callback(grid.register_forward_pre_hook(on_grid, with_kwargs=True).remove)
            for site in self._sites:
                for module, outputs in ((site.query, self._queries), (site.key, self._keys)):
                    projection = module.register_forward_hook(self._on_projection(site, outputs))
                    hooks.callback(projection.remove)
            yield

    def reset(self) -> None:
        """Forget what a crashed or finished call of the denoiser left behind."""
        self._grids.clear()
        self._queries.clear()
        self._keys.clear()
        self._first.clear()

    def end(self) -> None:
        """A denoiser call ends: every key must have met its query."""
        if self._keys:  # several masked reference images, say
            raise CaptureError(
                f"layer {next(iter(self._keys))!r}: keys for one query", expected="computed once",
                got="computed again", remedy="give each reference image an adapter of its own, or leave the "
                "layer out with layers=",
            )  # fmt: skip

    def _on_grid(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
        if not isinstance(features, torch.Tensor) or features.ndim != 4:
            name = next(site.name for site in self._sites if site.grid is module)
            shape = tuple(getattr(features, "shape", ()))
            raise CaptureError(
                f"layer {name!r}: input of its {type(module).__name__}",
                expected="a feature map [row, channel, rows, columns]",
                got=f"{type(features).__name__} {shape}",
                remedy="use an adapter that knows where this model keeps its grid",
            )
        self._grids[module] = (int(features.shape[2]), int(features.shape[3]))

    def _on_projection(self, site: Site, outputs: dict[str, torch.Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            outputs[site.name] = output.detach() if self._detach else output
            if site.name in self._queries and site.name in self._keys:
                query, key = self._queries.pop(site.name), self._keys.pop(site.name)
                first = self._first.setdefault(site.query, site.name)
                layer = _in_heads(site, query, key, self._grids.get(site.grid))
                self._receive(layer if first == site.name else replace(layer, query_of=first))

        return self._guard(hook)


def _in_heads(site: Site, query: torch.Tensor, key: torch.Tensor, grid: tuple[int, int] | None) -> QueryKey:
    width = query.shape[-1]
    if grid is None or query.ndim != 3 or width % site.heads or key.shape[-1] != width:
        raise CaptureError(
            f"layer {site.name!r}: query and key",
            expected=f"[row, token, a multiple of {site.heads} heads], under a {type(site.grid).__name__} "
            "that was called first",
            got=f"{tuple(query.shape)} and {tuple(key.shape)}, grid {grid}",
            remedy="use an adapter that knows this layer's geometry",
        )
    # Several reference images of one layer come as [row, image, token, width].
    key = key.flatten(1, -2) if key.ndim > 3 else key
    query, key = (x.reshape(*x.shape[:2], site.heads, width // site.heads) for x in (query, key))
    return QueryKey(site, query, key, grid, site.scale, static_key=site.static_key)
