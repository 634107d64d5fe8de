"""The guidance roles of the rows in the denoiser call that runs, outside a capture as inside one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Adapter
from i2am.pipeline.compilation import original
from i2am.pipeline.recording.step_tracker import StepTracker, as_layout, role_of_label, scheduler_progress
from i2am.pipeline.taps.call_arguments import call_arguments
from i2am.pipeline.taps.latent_tiles import TileTracker
from i2am.pipeline.taps.shared_wrapper import listening
from i2am.pipeline.timesteps import read_timestep
from i2am.storage.errors import CaptureError
from i2am.storage.format.tile import Tile


class CallRoles:
    """Follows the calls of a pipeline's denoiser and of the modules called right before it."""

    def __init__(
        self,
        pipe: Any,
        adapter: Adapter,
        samples: int,
        guidance: Sequence[Sequence[str]] | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        self._pipe, self._adapter, self._samples = pipe, adapter, samples
        self._tracker = StepTracker(as_layout(guidance), adapter.calls(pipe), scheduler_progress(pipe))
        self._tiles = TileTracker() if adapter.tiled else None
        self._schedule = [float(t) for t in timesteps or ()]
        self._label, self._inside = "", False
        self._rows: tuple[str, ...] | None = None
        self.tile: Tile | None = None

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Register every hook; hooks that are registered later see the call that has begun."""
        denoiser = original(self._adapter.denoiser(self._pipe))
        with ExitStack() as hooks:
            for module in (*map(original, self._adapter.companions(self._pipe)), denoiser):
                hooks.callback(module.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(self._pause_over, always_call=True).remove)
            hooks.callback(denoiser.register_forward_hook(self._end, always_call=True).remove)
            if hasattr(denoiser, "cache_context"):
                hooks.enter_context(listening(denoiser, "cache_context", self._set_label))
            if self._tiles is not None:
                hooks.enter_context(self._tiles)
            yield

    def rows(self, count: int, role: str = "cond") -> slice | None:
        """Where the rows of a role stand among ``count``, samples in order; None: not in this call."""
        if count % self._samples:
            raise CaptureError(
                "rows of a denoiser call",
                expected=f"a multiple of {self._samples} samples",
                got=str(count),
                remedy="give one set of removed tokens for each image of the call",
            )
        roles = self._rows
        if roles is None or len(roles) * self._samples != count:  # a ControlNet may see the cond rows alone
            roles = self._adapter.roles(self._pipe, count // self._samples)
        if role not in roles:
            return None
        start = roles.index(role) * self._samples
        return slice(start, start + self._samples)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._tiles is not None:
            self._tiles.pause()
        if self._inside:  # a companion began this call
            return
        self._inside = True
        arguments = call_arguments(module, args, kwargs)
        now = read_timestep(self._adapter.timestep(arguments))
        if not self._schedule:
            self._schedule = self._adapter.schedule(self._pipe, now.value, now.tolerance)
        if self._tiles is not None:
            latents = self._adapter.latents(arguments)
            if latents is not None:
                self.tile = self._tiles.last_cut(int(latents.shape[-2]), int(latents.shape[-1]))
        self._rows = self._tracker.begin(now, self._schedule, self.tile, self._label).rows

    def _pause_over(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._tiles is not None:
            self._tiles.resume()

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._inside, self._label = False, ""

    def _set_label(self, name: str, **kwargs: Any) -> None:
        self._label = role_of_label(name)
