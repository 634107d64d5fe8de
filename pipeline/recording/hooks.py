"""Watching a pipeline at work: hooks on its denoiser, the taps on its layers, and its tiles and labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import Adapter, AnySite, JointSite, Site
from i2am.pipeline.recording.recording import Recording
from i2am.pipeline.taps.attention_calls import CallTap
from i2am.pipeline.taps.latent_tiles import TileWatch
from i2am.pipeline.taps.projections import ProjectionTap, Tapped
from i2am.pipeline.timesteps import moment
from i2am.storage.format.tile import Tile


class Watch:
    """Hooks on a pipeline that tell the recording of the moment what happens; they only read.

    Parameters
    ----------
    pipe, adapter
        The pipeline, and what is known of its family.
    sites
        Layers to tap.
    recording
        The recording of the generation under way, or None.
    """

    def __init__(
        self, pipe: Any, adapter: Adapter, sites: Sequence[AnySite], recording: Callable[[], Recording | None]
    ) -> None:
        self._pipe, self._adapter, self._recording = pipe, adapter, recording
        self._denoiser, self._companions = adapter.denoiser(pipe), tuple(adapter.companions(pipe))
        self._projections = ProjectionTap([s for s in sites if isinstance(s, Site)], self._receive)
        joint = [s for s in sites if isinstance(s, JointSite)]
        self._joint = CallTap(joint, self._receive, self._keeps) if joint else None
        self._tiles = TileWatch() if adapter.tiled else None
        self._label = ""
        self._inside = False
        self._hooks = ExitStack()

    def __enter__(self) -> Watch:
        with ExitStack() as hooks:
            hooks.enter_context(self._projections)
            if self._joint is not None:
                hooks.enter_context(self._joint)
            for module in (*self._companions, self._denoiser):
                hooks.callback(module.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            hooks.callback(self._denoiser.register_forward_hook(self._end).remove)
            for module in (*self._companions, self._denoiser):
                resume = module.register_forward_hook(self._after, always_call=True)
                hooks.callback(resume.remove)
            hooks.enter_context(_labelled(self._denoiser, self._named))
            self._hooks = hooks.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    @contextmanager
    def generation(self) -> Iterator[None]:
        """One pipeline call; latents that are cut into tiles are seen inside it."""
        self._inside, self._label = False, ""
        with self._tiles if self._tiles is not None else ExitStack():
            yield

    def _keeps(self) -> bool:
        recording = self._recording()
        return recording is not None and recording.keeps

    def _receive(self, tapped: Tapped) -> None:
        if (recording := self._recording()) is not None:
            recording.receive(tapped)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recording = self._recording()
        if recording is None:
            return
        if self._tiles is not None:
            self._tiles.pause()
        if self._inside:  # a companion began this call
            return
        self._inside = True
        self._projections.reset()
        arguments = _named(module, args, kwargs)
        recording.begin_call(
            moment(self._adapter.timestep(arguments)), self._tile(arguments), label=self._label
        )
        if self._joint is not None and recording.keeps:
            self._joint.begin(self._adapter.spans(self._pipe, arguments))

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        recording = self._recording()
        if recording is not None and self._inside:
            self._projections.end()
            recording.end_call()

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A module has run, or failed."""
        if module is self._denoiser:
            self._inside = False
            if self._joint is not None:
                self._joint.reset()
        if self._tiles is not None and self._recording() is not None:
            self._tiles.resume()

    def _tile(self, arguments: Mapping[str, Any]) -> Tile | None:
        """Where the latents of this call lie, if they were cut out."""
        if self._tiles is None:
            return None
        latents = next(value for value in arguments.values() if isinstance(value, torch.Tensor))
        return self._tiles.place(int(latents.shape[-2]), int(latents.shape[-1]))

    def _named(self, label: str) -> None:
        self._label = label


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    extra = bound.pop("kwargs", {})
    return {**bound, **extra}


@contextmanager
def _labelled(denoiser: nn.Module, tell: Callable[[str], None]) -> Iterator[None]:
    """Listen to the role that a pipeline names itself: ``with transformer.cache_context("cond"):``."""
    original = getattr(denoiser, "cache_context", None)
    if original is None:
        yield
        return

    @contextmanager
    def cache_context(name: str, **kwargs: Any) -> Iterator[Any]:
        context: AbstractContextManager[Any] = original(name, **kwargs)
        with context as value:
            tell(name)
            try:
                yield value
            finally:
                tell("")

    denoiser.cache_context = cache_context  # type: ignore[assignment]
    try:
        yield
    finally:
        del denoiser.cache_context
