"""Hooks on a pipeline: its denoiser's calls, the taps on its layers, and its tiles and labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import Adapter, AnySite, JointSite, Site
from i2am.pipeline.recording.recording import Recording
from i2am.pipeline.taps.attention_calls import CallTap
from i2am.pipeline.taps.kernels import KernelCall, KernelTap
from i2am.pipeline.taps.latent_tiles import TileTracker
from i2am.pipeline.taps.projections import ProjectionTap, QueryKey
from i2am.pipeline.timesteps import read_timestep
from i2am.storage.format.tile import Tile


class PipelineHooks:
    """Hooks that pass on what a pipeline does to the recording under way, if any; they only read."""

    def __init__(
        self, pipe: Any, adapter: Adapter, sites: Sequence[AnySite], recording: Callable[[], Recording | None]
    ) -> None:
        self._pipe, self._adapter, self._recording = pipe, adapter, recording
        self._denoiser, self._companions = adapter.denoiser(pipe), tuple(adapter.companions(pipe))
        self._projections = ProjectionTap([s for s in sites if isinstance(s, Site)], self._receive)
        joint = [s for s in sites if isinstance(s, JointSite)]
        self._joint = CallTap(joint, self._receive, self._keeps_call) if joint else None
        modules = [site.attention for site in sites]
        self._kernels = KernelTap(modules, self._on_kernel, self._on_attention_end, self._keeps_call)
        self._tiles = TileTracker() if adapter.tiled else None
        self._label = ""
        self._inside_call = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Register every hook; where one registration fails, the earlier ones are removed."""
        with ExitStack() as hooks:
            hooks.enter_context(self._kernels.attached())
            hooks.enter_context(self._projections.attached())
            if self._joint is not None:
                hooks.enter_context(self._joint.attached())
            modules = (*self._companions, self._denoiser)
            for module in modules:
                hooks.callback(module.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            hooks.callback(self._denoiser.register_forward_hook(self._end).remove)
            for module in modules:
                hooks.callback(module.register_forward_hook(self._after, always_call=True).remove)
            hooks.enter_context(_listening_to_labels(self._denoiser, self._set_label))
            yield

    @contextmanager
    def generation(self) -> Iterator[None]:
        """One pipeline call; latents that are cut into tiles are seen inside it."""
        self._inside_call, self._label = False, ""
        with self._tiles if self._tiles is not None else ExitStack():
            yield

    def _keeps_call(self) -> bool:
        recording = self._recording()
        return recording is not None and recording.keeps_call

    def _receive(self, layer: QueryKey) -> None:
        if (recording := self._recording()) is not None:
            recording.receive(layer)

    def _on_kernel(self, module: nn.Module, call: KernelCall) -> None:
        if (recording := self._recording()) is not None:
            recording.witness.called(module, call)

    def _on_attention_end(self, module: nn.Module) -> None:
        if (recording := self._recording()) is not None:
            recording.witness.module_ended(module)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recording = self._recording()
        if recording is None:
            return
        if self._tiles is not None:
            self._tiles.pause()
        if self._inside_call:  # a companion began this call
            return
        self._inside_call = True
        self._projections.reset()
        arguments = _by_name(module, args, kwargs)
        now = read_timestep(self._adapter.timestep(arguments))
        recording.begin_call(now, self._tile(arguments), label=self._label)
        if self._joint is not None and recording.keeps_call:
            self._joint.begin(self._adapter.spans(self._pipe, arguments))

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        recording = self._recording()
        if recording is not None and self._inside_call:
            self._projections.end()
            recording.end_call()

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A module has run, or failed."""
        if module is self._denoiser:
            self._inside_call = False
            if self._joint is not None:
                self._joint.reset()
        if self._tiles is not None and self._recording() is not None:
            self._tiles.resume()

    def _tile(self, arguments: Mapping[str, Any]) -> Tile | None:
        if self._tiles is None:
            return None
        latents = next(value for value in arguments.values() if isinstance(value, torch.Tensor))
        return self._tiles.last_cut(int(latents.shape[-2]), int(latents.shape[-1]))

    def _set_label(self, label: str) -> None:
        self._label = label


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    extra = bound.pop("kwargs", {})
    return {**bound, **extra}


@contextmanager
def _listening_to_labels(denoiser: nn.Module, set_label: Callable[[str], None]) -> Iterator[None]:
    """Learn the role that a pipeline names itself: ``with transformer.cache_context("cond"):``."""
    original = getattr(denoiser, "cache_context", None)
    if original is None:
        yield
        return

    @contextmanager
    def cache_context(name: str, **kwargs: Any) -> Iterator[Any]:
        context: AbstractContextManager[Any] = original(name, **kwargs)
        with context as value:
            set_label(name)
            try:
                yield value
            finally:
                set_label("")

    denoiser.cache_context = cache_context  # type: ignore[assignment]
    try:
        yield
    finally:
        del denoiser.cache_context
