"""Every attention call that a pipeline makes in a short generation, and the modules that were called."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import nn

from i2am.pipeline.foreign_errors import as_capture_error
from i2am.pipeline.taps.call_arguments import call_arguments
from i2am.pipeline.taps.kernels import MULTIHEAD, SDPA, SOFTMAX, FunctionCalls, KernelCall, sdpa_call
from i2am.pipeline.taps.written_out import PRODUCTS, Products
from i2am.storage.errors import CaptureError

KEPT = 8
"""Calls of a module whose arguments are kept: two steps of any guidance."""

_DEEPEST = 3


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of an attention kernel."""

    path: str  # of the innermost module that runs, from the pipeline's attribute on
    number: int  # among the module's calls that can be read, while it runs; or among the others
    module_class: str
    kernel: str
    shape: tuple[int | None, ...]  # row, head, query, key, dim; of a softmax, rows and heads are one
    mask: tuple[int, ...] | None
    scale: float | None
    outer: str  # the outermost module that runs
    outer_call: int  # which of its calls it is


@dataclass(slots=True)
class ModuleCall:
    """A call of a module that no other module called."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    numbers: dict[str, float]  # arguments that are one number, or one for each row, all equal
    tokens: int | None = None  # of its output [row, token, width]
    autocast: tuple[str, torch.dtype] | None = None  # device and precision, where it ran under autocast

    @property
    def arguments(self) -> dict[str, Any]:
        return call_arguments(self.module, self.args, self.kwargs)

    def again(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call the module as it was called, with these arguments."""
        device, dtype = self.autocast or ("cpu", torch.bfloat16)
        failed = as_capture_error(
            "the denoiser, called again with its own arguments, failed",
            "describe the model by hand: help(i2am.GenericAdapter)",
        )
        cast = torch.autocast(device, dtype, enabled=self.autocast is not None)
        with failed, torch.no_grad(), cast:
            self.module(*args, **kwargs)


@dataclass(slots=True)
class Watched:
    """What was seen: attention in order, and each outermost module's first calls."""

    attention: list[AttentionCall] = field(default_factory=list)
    calls: dict[str, list[ModuleCall]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # of all calls


OnAttention: TypeAlias = Callable[[AttentionCall, KernelCall], None]
"""Called with what a kernel is given, where that is query and key."""


class _Enough(BaseException):
    """Ends the generation, as no error of the probe's own may."""


def pattern_of(path: str) -> str:
    """The path of a module with a * for each number."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)


def modules_of(pipe: Any) -> dict[str, nn.Module]:
    """Every module that hangs on a pipeline, by its path from the pipeline's attribute on."""
    found, seen = dict[str, nn.Module](), set[int]()
    holders = [("", pipe, 0)]
    for path, holder, depth in holders:
        own = {**vars(holder), **(dict(holder.named_children()) if isinstance(holder, nn.Module) else {})}
        for name, value in own.items():
            where = f"{path}.{name}".lstrip(".")
            if name.startswith("_") or id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, nn.Module):
                for below, module in value.named_modules():
                    found.setdefault(f"{where}.{below}".rstrip("."), module)
            elif depth < _DEEPEST and hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
                holders.append((where, value, depth + 1))
    return found


def watch(pipe: Any, generate: Callable[[], object], steps: int) -> Watched:
    """Run ``generate`` for so many steps of whatever is called with a timestep; what attention it made."""
    modules, seen = modules_of(pipe), Watched()
    if not modules:
        raise CaptureError("probe of the pipeline", expected="torch modules", got="none")
    with watching(modules, seen, steps=steps), suppress(_Enough):
        generate()
    if not seen.attention:
        raise CaptureError(
            "probe of the pipeline",
            expected="calls of scaled_dot_product_attention, or a softmax that is written out",
            got="none from " + (", ".join(list(seen.calls)[:8]) or "any module"),
            remedy="is the attention made by another kernel, or compiled? set_attention_backend('native')",
        )
    return seen


@contextmanager
def watching(
    modules: Mapping[str, nn.Module],
    seen: Watched,
    on_attention: OnAttention | None = None,
    steps: int | None = None,
) -> Iterator[None]:
    """Follow modules and kernels, into ``seen``."""
    running: list[tuple[str, nn.Module, Counter[bool], Products]] = []  # calls that can be read, or not

    def enter(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not running:
                _begin(seen, path, module, args, kwargs, steps)
            running.append((path, module, Counter(), Products()))

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if running and running[-1][1] is module:
            path, *_ = running.pop()
            if not running and len(seen.calls[path]) == seen.counts[path]:
                seen.calls[path][-1].tokens = _tokens(output)

    def on_function(function: Any, *args: Any, **kwargs: Any) -> None:
        if not running:
            return
        path, module, numbers, products = running[-1]
        read = None
        if function in PRODUCTS:
            products.note(function, args)
        else:
            read = _read(function, args, kwargs, products)
        if read is None:
            return
        outer = running[0][0]
        shape, mask, scale, kernel = read
        name = "softmax" if function in SOFTMAX else function.__name__
        place = numbers[kernel is not None], type(module).__name__, name
        own = AttentionCall(path, *place, shape, mask, scale, outer, seen.counts[outer] - 1)
        numbers[kernel is not None] += 1
        seen.attention.append(own)
        if on_attention is not None and kernel is not None:
            on_attention(own, kernel)

    with ExitStack() as hooks:
        for path, module in modules.items():
            if isinstance(module, nn.Softmax):
                continue  # a part of the attention that calls it
            hooks.callback(module.register_forward_pre_hook(enter(path), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
        hooks.enter_context(FunctionCalls({SDPA, MULTIHEAD, *SOFTMAX, *PRODUCTS}, on_function))
        yield


def _read(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], products: Products) -> Any:
    """Shape, mask's shape and scale of a kernel call, and the call itself where it can be read."""
    call = sdpa_call(*args, **kwargs) if function is SDPA else None
    if function in SOFTMAX:
        call = products.call(args, kwargs)
    if call is not None and call.query is not None and call.key is not None:
        rows, heads, queries, dim = call.query.shape
        mask = None if call.mask is None else tuple(call.mask.shape)
        return (rows, heads, queries, call.key.shape[2], dim), mask, call.scale, call
    if function is MULTIHEAD:
        if not kwargs.get("need_weights", True):
            return None  # what it calls is seen
        query, key, heads = args[0], args[1], args[4]
        return (query.shape[1], heads, len(query), len(key), query.shape[2] // heads), None, None, None
    logits = args[0] if args else kwargs["input"]
    if logits.ndim < 3:
        return None
    return (logits[..., 0, 0].numel(), None, *logits.shape[-2:], None), None, None, None


def _begin(
    seen: Watched,
    path: str,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    steps: int | None,
) -> None:
    """A module is called that no other module called; the generation ends after enough steps."""
    calls, count = seen.calls.setdefault(path, []), seen.counts.get(path, 0)
    numbers = _numbers(call_arguments(module, args, kwargs))
    told = {tuple(call.numbers.items()) for call in calls} | {tuple(numbers.items())}
    if steps is not None and len(told) > steps and any(call.outer == path for call in seen.attention):
        raise _Enough
    seen.counts[path] = count + 1
    if len(calls) < KEPT:
        own, named = copied((args, kwargs))
        calls.append(ModuleCall(module, own, named, numbers, autocast=_autocast()))


def copied(tree: Any) -> Any:
    """A copy of arguments whose tensors the pipeline may change in place."""
    return mapped(tree, lambda _, tensor: tensor.detach().clone())


def mapped(tree: Any, change: Callable[[str, torch.Tensor], torch.Tensor], path: str = "") -> Any:
    """``tree`` with each of its tensors changed, given its path."""
    if isinstance(tree, torch.Tensor):
        return change(path, tree)
    if type(tree) in (list, tuple):
        return type(tree)(mapped(item, change, f"{path}[{place}]") for place, item in enumerate(tree))
    if type(tree) is dict:
        return {key: mapped(item, change, f"{path}.{key}" if path else key) for key, item in tree.items()}
    return copy.copy(tree) if isinstance(tree, set) else tree


def _autocast() -> tuple[str, torch.dtype] | None:
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):
            return device, torch.get_autocast_dtype(device)
    return None


def _tokens(output: Any) -> int | None:
    """How many tokens a module made: those of the first tensor [row, token, width] of its output."""
    if isinstance(output, torch.Tensor):
        return output.shape[1] if output.ndim == 3 else None
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    return next((found for item in items if (found := _tokens(item)) is not None), None)


def _numbers(arguments: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and value.ndim < 2 and value.numel():
            flat = value.detach().flatten().double()
            if bool((flat == flat[0]).all()):
                found[name] = float(flat[0])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found
