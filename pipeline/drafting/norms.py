"""Which linear layer takes the mixed values of an attention call, and what takes the stream before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from i2am.pipeline.drafting.dependence import Layer
from i2am.pipeline.drafting.layouts import Layout, places
from i2am.pipeline.drafting.watch import AttentionCall, ModuleCall, Watched, watching
from i2am.pipeline.taps.kernels import KernelCall
from i2am.pipeline.taps.value_flow import mixed_values

Beside: TypeAlias = dict[Layer, list[str]]
"""Layer to the lines that say its output and stream, in its module or beside it, as far as they are found."""


@dataclass(slots=True)
class _Seen:
    """An attention call: what it mixes for one generated token, and what was found of it."""

    block: str  # path of what holds the attention module
    mixed: torch.Tensor
    token: int
    queries: int
    stream: tuple[str, int] | None  # and how many tokens it has
    output: str | None = None

    def takes(self, given: torch.Tensor) -> bool:
        """Whether ``given``, of all queries, or of the first or last ones, begins with what was mixed."""
        width = len(self.mixed)
        for place in {self.token, self.token - self.queries + given.shape[1]}:
            if 0 <= place < given.shape[1] and given.shape[2] >= width:
                own = given[0, place, :width].float()
                if torch.allclose(own, self.mixed, rtol=1e-2, atol=1e-3):
                    return True
        return False


def outputs_and_streams(
    modules: Mapping[str, nn.Module], first: ModuleCall, taken: Mapping[Layer, Layout]
) -> Beside:
    """Call the denoiser once more, and compare what its linear layers are given with what was mixed."""
    seen, norms = dict[Layer, _Seen](), dict[str, tuple[str, int]]()

    def on_attention(call: AttentionCall, kernel: KernelCall) -> None:
        layer = call.path, call.number
        if layer in taken and layer not in seen and kernel.value is not None:
            block, token = call.path.rpartition(".")[0], places(taken[layer].queries, None)[-1]
            queries = int(call.shape[2] or 0)
            seen[layer] = _Seen(block, _mixed(kernel, token), token, queries, norms.get(block))

    def on_module(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            norms.pop(path, None)  # a block begins
            given = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
            if not isinstance(given, torch.Tensor) or given.ndim != 3:
                return
            block, _, name = path.rpartition(".")
            if "Norm" in type(module).__name__:
                norms.setdefault(block, (name, given.shape[1]))
            for (attention, _), each in seen.items() if isinstance(module, nn.Linear) else ():
                if each.output is None and path.startswith(f"{each.block}.") and each.takes(given):
                    each.output = path.removeprefix(f"{attention}.").removeprefix(f"{each.block}.")

        return hook

    handles = [
        module.register_forward_pre_hook(on_module(path), with_kwargs=True)
        for path, module in modules.items()
    ]
    try:
        with watching(modules, Watched(), on_attention):
            first.again(first.args, first.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: _lines(each, places(taken[layer].queries, None)) for layer, each in seen.items()}


def _lines(seen: _Seen, generated: list[int]) -> list[str]:
    """The stream is said where its tokens may be all queries, the last or the first ones."""
    if seen.output is None:
        return []
    lines = [f"    output: {seen.output}"]
    name, tokens = seen.stream or ("", 0)
    first, last = generated[-1] < tokens, generated[0] >= seen.queries - tokens
    if first or last:
        which = "" if tokens == seen.queries else f": of the {'last' if last else 'first'} {tokens} queries"
        lines.append(f"    stream: {name}  # CHECK{which}")
        lines += [] if last else ["    stream_first: true"]
    return lines


def _mixed(call: KernelCall, token: int) -> torch.Tensor:
    """What one query of the first row mixes, [head * dim]."""
    if call.query is None or call.key is None or call.value is None:
        raise TypeError("a kernel that is given query, key and value")
    query, key, value = (x[0].transpose(0, 1) for x in (call.query, call.key, call.value))
    mask = call.mask
    if mask is not None:
        mask = mask.reshape(*[1] * (4 - mask.ndim), *mask.shape)[0]
        mask = mask if mask.shape[-2] == 1 else mask[:, token, None]
    return mixed_values(query[token, None], key, value, call.scale, mask=mask)[0]
