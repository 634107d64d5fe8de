"""Hooks on a pipeline: its denoiser's calls, the taps on its layers, and its tiles and labels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Adapter, AnySite, JointSite, Site
from i2am.pipeline.compilation import original
from i2am.pipeline.recording.recording import Recording
from i2am.pipeline.recording.step_tracker import role_of_label
from i2am.pipeline.taps.attention_calls import CallTap
from i2am.pipeline.taps.call_arguments import EncoderCalls, call_arguments
from i2am.pipeline.taps.guard import make_guard
from i2am.pipeline.taps.kernels import KernelCall, KernelTap
from i2am.pipeline.taps.latent_tiles import TileTracker
from i2am.pipeline.taps.projections import ProjectionTap, QueryKey
from i2am.pipeline.taps.shared_wrapper import listening
from i2am.pipeline.taps.value_flow import FlowTap, ValueFlow
from i2am.pipeline.timesteps import read_timestep
from i2am.storage.errors import CaptureError
from i2am.storage.format.tile import Tile


class PipelineHooks:
    """Hooks that pass on what a pipeline does to the recording under way; they only read.

    They are there during a generation alone, on the modules that the pipeline has then: a LoRA or a processor
    that came since the last generation is seen. Calls made by other threads are passed over.
    """

    def __init__(
        self,
        pipe: Any,
        adapter: Adapter,
        sites: Sequence[AnySite],
        recording: Callable[[], Recording | None],
        value_norms: bool = False,
        text: bool = False,
    ) -> None:
        self._pipe, self._adapter = pipe, adapter
        self._names = [site.name for site in sites]
        self._recording_under_way, self._value_norms, self._text = recording, value_norms, text
        self._guard = make_guard(self._here, self._keep_error)
        self._projections = ProjectionTap((), self._receive, self._guard)
        self._flows: FlowTap | None = None
        self._joint: CallTap | None = None
        self._encoders = EncoderCalls((), self._guard)
        self._tiles: TileTracker | None = None
        self._denoiser = original(adapter.denoiser(pipe))
        self._label = ""
        self._inside_call = False

    @contextmanager
    def generation(self) -> Iterator[None]:
        """One pipeline call; where the registration of a hook fails, the earlier ones are removed."""
        self._inside_call, self._label = False, ""
        sites = self._current_sites()
        joint = [site for site in sites if isinstance(site, JointSite)]
        self._projections = ProjectionTap(
            [site for site in sites if isinstance(site, Site)], self._receive, self._guard
        )
        self._flows = None
        if self._value_norms:
            self._flows = FlowTap(sites, self._receive_flow, self._lack, self._keeps_call, self._guard)
        self._joint = None
        if joint:
            self._joint = CallTap(
                joint, self._receive, self._keeps_call, self._guard, flows=self._flows, text=self._text
            )
        self._encoders = EncoderCalls([*map(original, self._adapter.encoders(self._pipe))], self._guard)
        kernels = KernelTap(
            [site.attention for site in sites], self._on_kernel, self._on_attention_end, self._keeps_call,
            self._guard,
        )  # fmt: skip
        self._tiles = TileTracker() if self._adapter.tiled else None
        self._denoiser = original(self._adapter.denoiser(self._pipe))
        modules = (*map(original, self._adapter.companions(self._pipe)), self._denoiser)
        with ExitStack() as hooks:
            hooks.enter_context(kernels.attached())
            hooks.enter_context(self._encoders.attached())
            hooks.enter_context(self._projections.attached())
            if self._flows is not None:
                hooks.enter_context(self._flows.attached())
            if self._joint is not None:
                hooks.enter_context(self._joint.attached())
            for module in modules:
                begin = module.register_forward_pre_hook(self._guard(self._begin), with_kwargs=True)
                hooks.callback(begin.remove)
            hooks.callback(self._denoiser.register_forward_hook(self._guard(self._end)).remove)
            for module in modules:
                after = module.register_forward_hook(self._guard(self._after), always_call=True)
                hooks.callback(after.remove)
            if hasattr(self._denoiser, "cache_context"):  # the role that a pipeline names itself
                hooks.enter_context(listening(self._denoiser, "cache_context", self._guard(self._set_label)))
            if self._tiles is not None:
                hooks.enter_context(self._tiles)
            yield

    def _current_sites(self) -> list[AnySite]:
        found = {site.name: site for site in all_sites(self._adapter, self._pipe, self._text)}
        for name in self._names:
            if name not in found:
                raise CaptureError(
                    f"layer {name!r}",
                    expected="a layer that the model still has",
                    got="none of that name",
                    remedy="end the capture before the model's layers change, and begin another",
                )
        return [found[name] for name in self._names]

    def _here(self) -> bool:
        """Whether a recording is under way in this thread."""
        recording = self._recording_under_way()
        return recording is not None and recording.thread == threading.get_ident()

    def _recording(self) -> Recording | None:
        """The recording under way in this thread, unless it has failed."""
        recording = self._recording_under_way()
        return recording if recording is not None and self._here() and recording.error is None else None

    def _keep_error(self, error: Exception) -> None:
        if (recording := self._recording()) is not None:
            recording.error = error

    def _keeps_call(self) -> bool:
        recording = self._recording()
        return recording is not None and recording.keeps_call

    def _receive(self, layer: QueryKey) -> None:
        if (recording := self._recording()) is not None:
            recording.receive(layer)

    def _receive_flow(self, flow: ValueFlow) -> None:
        if (recording := self._recording()) is not None:
            recording.receive_flow(flow)

    def _lack(self, layer: str, why: str) -> None:
        if (recording := self._recording()) is not None:
            recording.norms.lack(layer, why)

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
        arguments = call_arguments(module, args, kwargs)
        if self._adapter.prepares(self._pipe, arguments):
            return
        self._inside_call = True
        self._projections.reset()
        if self._flows is not None:
            self._flows.reset()
        now = read_timestep(self._adapter.timestep(arguments))
        recording.begin_call(now, self._tile(arguments), self._label, self._adapter.latents(arguments))
        if self._joint is not None:
            arguments |= self._encoders.take()
            self._joint.begin(self._adapter.spans(self._pipe, arguments, self._joint.sites))

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        recording = self._recording()
        if recording is not None and self._inside_call:
            self._projections.end()
            recording.end_call()

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A module has run, or failed."""
        if module is self._denoiser:
            self._inside_call, self._label = False, ""
            if self._joint is not None:
                self._joint.reset()
        if self._tiles is not None and self._recording() is not None:
            self._tiles.resume()

    def _tile(self, arguments: Mapping[str, Any]) -> Tile | None:
        if self._tiles is None:
            return None
        latents = self._adapter.latents(arguments)
        if latents is None:
            return None
        return self._tiles.last_cut(int(latents.shape[-2]), int(latents.shape[-1]))

    def _set_label(self, name: str, **kwargs: Any) -> None:
        self._label = role_of_label(name)


def all_sites(adapter: Adapter, pipe: Any, text: bool) -> list[AnySite]:
    """The layers of a pipeline, with those of words after them where they are asked for."""
    sites = list(adapter.sites(pipe))
    if text and not (words := adapter.text_sites(pipe)) and not any(isinstance(s, JointSite) for s in sites):
        raise CaptureError(
            f"adapter {adapter.name!r}: layers that attend to words", expected="at least one", got="none",
            remedy="leave text=True out",
        )  # fmt: skip
    return [*sites, *words] if text else sites
