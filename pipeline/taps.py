"""The projection tap: q and k as the model itself computed them, read from the outputs of its projections.

Nothing stands between these outputs and the scores but the reshape into heads and the scale, so the tap
serves every attention kernel (einsum, SDPA, xformers) and never computes anything twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import nn

from pipeline.adapters.contract import Site
from storage.errors import CaptureError

Receive: TypeAlias = Callable[[Site, torch.Tensor, torch.Tensor, tuple[int, int]], None]
"""Called with (site, query, key, generated grid) once a site's projections have both run."""


class ProjectionTap:
    """Forward hooks on the projections of ``sites``; they only read, and all leave with the context.

    Parameters
    ----------
    sites
        Layers to tap.
    receive
        Gets each layer's query and key, [row, token, heads * head dim], as soon as both exist. The tensors
        are the model's own: copy before returning.
    """

    def __init__(self, sites: Sequence[Site], receive: Receive) -> None:
        self._sites, self._receive = tuple(sites), receive
        self._grids: dict[str, tuple[int, int]] = {}
        self._half: dict[str, dict[str, torch.Tensor]] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> ProjectionTap:
        with ExitStack() as hooks:
            for site in self._sites:
                # One at a time: where a later registration fails, the earlier ones leave.
                grid = site.grid.register_forward_pre_hook(self._on_grid(site), with_kwargs=True)
                hooks.callback(grid.remove)
                for module, half in ((site.query, "query"), (site.key, "key")):
                    projection = module.register_forward_hook(self._on_projection(site, half))
                    hooks.callback(projection.remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()
        self.reset()

    def reset(self) -> None:
        """Forget what a crashed or finished call of the denoiser left behind."""
        self._grids.clear()
        self._half.clear()

    def _on_grid(self, site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            features = args[0] if args else kwargs.get("hidden_states")
            if not isinstance(features, torch.Tensor) or features.ndim != 4:
                shape = tuple(getattr(features, "shape", ()))
                raise CaptureError(
                    f"layer {site.name!r}: input of its {type(module).__name__}",
                    expected="a feature map [row, channel, rows, columns]",
                    got=f"{type(features).__name__} {shape}",
                    remedy="use an adapter that knows where this model keeps its grid",
                )
            self._grids[site.name] = (int(features.shape[2]), int(features.shape[3]))

        return hook

    def _on_projection(self, site: Site, half: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            held = self._half.setdefault(site.name, {})
            held[half] = output.detach()
            if len(held) == 2:
                del self._half[site.name]
                self._receive(site, held["query"], held["key"], self._grids[site.name])

        return hook
