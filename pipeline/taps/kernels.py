"""Attention kernels seen at work: what they are given, whichever of them a model calls.

A kernel is given query and key (SDPA, xformers, flash attention), or is written out and ends in a softmax
whose input is the logits, with scale and mask. Both are read here; nothing is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from i2am.pipeline.taps.guard import Guard
from i2am.pipeline.taps.shared_wrapper import listening

SDPA = torch.nn.functional.scaled_dot_product_attention
MULTIHEAD = torch.nn.functional.multi_head_attention_forward
SOFTMAX = {torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax}

_TOKEN_FIRST = (
    ("xformers.ops", "memory_efficient_attention"),
    ("flash_attn", "flash_attn_func"),
    ("flash_attn_interface", "flash_attn_func"),
)
"""Kernels that are functions of other packages: [row, token, head, dim], or [row * head, token, dim]."""


@dataclass(frozen=True, slots=True)
class KernelCall:
    """What a call of a kernel was given: query and key, or the logits alone."""

    kernel: str  # its name
    query: torch.Tensor | None = None  # [row, head, token, dim]
    key: torch.Tensor | None = None  # as `query`
    scale: float = 1.0  # factor on q·k
    # Boolean (True takes part), or added to the logits; broadcasts over [row, head, gen, ref].
    mask: torch.Tensor | None = None
    logits: torch.Tensor | None = None  # [row * head, gen, ref], scale and mask included
    value: torch.Tensor | None = None  # as `query`, where a kernel's call is passed on with it


OnCall: TypeAlias = Callable[[nn.Module, KernelCall], None]
"""Called with the attention module that runs and the kernel call that it makes."""


class KernelTap:
    """Sees the kernel calls that attention modules make, in the thread that attached the tap."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        on_call: OnCall,
        on_end: Callable[[nn.Module], None],
        wanted: Callable[[], bool],
        guard: Guard,
    ) -> None:
        self._modules, self._on_call, self._wanted = tuple(dict.fromkeys(modules)), on_call, wanted
        self._on_end, self._guard = on_end, guard
        self._running: list[nn.Module] = []
        self._mode: FunctionCalls | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Register every hook; where one registration fails, the earlier ones are removed."""
        with ExitStack() as hooks:
            for package, name in _TOKEN_FIRST:
                if hasattr(sys.modules.get(package), name):
                    hooks.enter_context(
                        listening(sys.modules[package], name, self._guard(self._package_kernel(name)))
                    )
            for module in self._modules:
                hooks.callback(module.register_forward_pre_hook(self._guard(self._enter)).remove)
                leave = module.register_forward_hook(self._guard(self._leave), always_call=True)
                hooks.callback(leave.remove)
            hooks.callback(self.reset)
            yield

    def reset(self) -> None:
        """Forget what a crashed call of the denoiser left behind."""
        self._running.clear()
        self._leave_mode()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self._wanted():
            return
        self._running.append(module)
        if self._mode is None:
            self._mode = FunctionCalls({SDPA, *SOFTMAX}, self._guard(self._on_function))
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()
            self._on_end(module)
        if not self._running:
            self._leave_mode()

    def _leave_mode(self) -> None:
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _on_function(self, function: Any, *args: Any, **kwargs: Any) -> None:
        if function is SDPA:
            self._report(sdpa_call(*args, **kwargs))
        else:
            logits = args[0] if args else kwargs["input"]
            if logits.ndim >= 3:
                self._report(KernelCall("softmax", logits=logits.detach().flatten(0, -3)))

    def _report(self, call: KernelCall) -> None:
        if self._running:
            self._on_call(self._running[-1], call)

    def _package_kernel(self, name: str) -> Callable[..., None]:
        def on_call(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> None:
            if not self._running:
                return
            mask = kwargs.get("attn_bias", args[0] if args and name.startswith("memory") else None)
            scale = kwargs.get("scale", kwargs.get("softmax_scale"))
            if not _unreadable(name, mask, args, kwargs):
                self._report(_token_first(name, query.detach(), key.detach(), mask, scale))

        return on_call


def _unreadable(name: str, mask: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call changes its logits in a way that is not read here: its layer stays unwitnessed."""
    return (
        not (mask is None or isinstance(mask, torch.Tensor))
        or (name.startswith("flash") and bool(args))
        or any(kwargs.get(option) for option in ("causal", "softcap"))
        or kwargs.get("alibi_slopes") is not None
        or tuple(kwargs.get("window_size", (-1, -1))) != (-1, -1)
    )


class FunctionCalls(TorchFunctionMode):
    """Reports calls of ``functions`` of torch while it is entered, and passes them on."""

    def __init__(self, functions: Collection[Any], on_function: Callable[..., None]) -> None:
        super().__init__()
        self._functions, self._on_function = functions, on_function

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._functions:
            self._on_function(func, *args, **kwargs)
        if func is MULTIHEAD and SDPA in self._functions:  # no mode sees the calls inside it
            with listening(torch.nn.functional, SDPA.__name__, partial(self._on_function, SDPA)):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def sdpa_call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> KernelCall:
    """A call of torch's scaled_dot_product_attention, from its arguments."""
    query, key, value = (x if x.ndim == 4 else x[:, None] for x in (query, key, value))
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    if is_causal:
        attn_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    return KernelCall("scaled_dot_product_attention", query, key, factor, attn_mask, value=value)


def dispatched_call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> KernelCall:
    """A call of diffusers' dispatch, whose first arguments are those of torch's, [row, token, head, dim]."""
    if attn_mask is not None and attn_mask.shape == (query.shape[0], key.shape[1]):
        attn_mask = attn_mask[:, None, None]  # its native backends take [row, key]
    names = ("dropout_p", "is_causal", "scale", "enable_gqa")
    given = dict(zip(names, args, strict=False)) | {name: kwargs[name] for name in names if name in kwargs}
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return sdpa_call(query, key, value, attn_mask, **given)


def _token_first(name: str, query: torch.Tensor, key: torch.Tensor, mask: Any, scale: Any) -> KernelCall:
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    if query.ndim == 3:  # [row * head, token, dim]
        return KernelCall(name, query[:, None], key[:, None], factor, mask)
    return KernelCall(name, query.transpose(1, 2), key.transpose(1, 2), factor, mask)
