"""What values become: through the output projection, and added to the stream. On the device, in float32.

Source of the value norm: Kobayashi et al., 2020, "Attention is not only a weight": what a token gives is its
weight times the norm of its value through the output projection, its bias left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from i2am.pipeline.adapters.contract import AnySite, JointSite, Site, Spans
from i2am.pipeline.taps.guard import Guard
from i2am.pipeline.taps.held_weights import held, offload_groups

_BLOCK_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Bytes of float32 numbers that are made at a time."""

_PLAIN = (torch.Tensor, nn.Parameter)
"""Classes of weights whose numbers are what they stand for; those of quantisation are others."""


@dataclass(frozen=True, slots=True)
class ValueFlow:
    """The values of one call of a layer, and what is made of them. The tensors are the model's own."""

    site: AnySite
    value: torch.Tensor  # of the reference tokens, [row, token, head, dim]
    weight: torch.Tensor | None  # of the output projection, [channel, head * dim]; None: there is none
    added: Callable[[int], torch.Tensor] | None  # row to the reference's part before it, [gen, head * dim]
    stream: torch.Tensor | None  # norms of what it is added to, [row, gen]
    part: str = ""  # as in `QueryKey`

    def value_norm(self, row: int, heads: Sequence[int]) -> torch.Tensor:
        """Norm of W_o v of some heads, [head, token] float32."""
        dim = self.value.shape[-1]
        value = self.value[row].transpose(0, 1)
        if self.weight is None:
            norms: torch.Tensor = torch.linalg.vector_norm(value[list(heads)].float(), dim=-1)
            return norms
        weight = self.weight.reshape(len(self.weight), -1, dim).permute(1, 2, 0)  # [head, dim, channel]
        if len(heads) < len(value):
            value, weight = value[list(heads)], weight[list(heads)]
        many = max(1, _limit(value) // (4 * value.shape[1] * weight.shape[2]))
        with torch.no_grad(), torch.autocast(value.device.type, enabled=False):
            given = [
                torch.linalg.vector_norm(torch.matmul(v.float(), w.float()), dim=-1)
                for v, w in zip(torch.split(value, many), torch.split(weight, many), strict=True)
            ]
        return torch.cat(given)

    def contribution(self, row: int) -> torch.Tensor | None:
        """Norm of what the reference adds to each token over that of the stream, [gen] float32."""
        if self.added is None or self.stream is None:
            return None
        with torch.no_grad(), torch.autocast(self.stream.device.type, enabled=False):
            given = self.added(row).float()
            if self.weight is not None:
                given = torch.matmul(given, self.weight.float().T)
            share: torch.Tensor = torch.linalg.vector_norm(given, dim=-1) / self.stream[row]
        return share


ReceiveFlow: TypeAlias = Callable[[ValueFlow], None]
Lack: TypeAlias = Callable[[str, str], None]
"""Called with the name of a layer of which something cannot be measured, and why."""


class FlowTap:
    """Hooks on value and output projections, and on what takes the stream; they only read.

    A layer of which something cannot be read is reported to ``lack``, and goes without it.
    """

    def __init__(
        self,
        sites: Sequence[AnySite],
        receive: ReceiveFlow,
        lack: Lack,
        keeps_call: Callable[[], bool],
        guard: Guard,
    ) -> None:
        self._sites, self._receive, self._lack = tuple(sites), receive, lack
        self._keeps_call, self._guard = keeps_call, guard
        self._found: dict[tuple[str, str], torch.Tensor] = {}  # (layer, what) to its latest tensor
        # Layers that wait for the end of their block, and what to do then with the stream.
        self._ending: dict[str, list[Callable[[torch.Tensor], None]]] = {}
        self._masked: set[str] = set()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Register every hook; where one registration fails, the earlier ones are removed."""
        with ExitStack() as hooks:
            hooks.callback(self.reset)
            for site in self._sites:
                if site.stream is not None:
                    before = self._guard(partial(self._on_stream, site))
                    hooks.callback(site.stream.register_forward_pre_hook(before, with_kwargs=True).remove)
                if isinstance(site, JointSite) and site.block is not None:
                    keep = self._guard(partial(self._keep_last, site))
                    hooks.callback(site.attention.register_forward_hook(keep).remove)
                    end = self._guard(partial(self._on_block_end, site))
                    hooks.callback(site.block.register_forward_hook(end).remove)
                if isinstance(site, JointSite) or site.value is None or site.output is None:
                    continue
                watched = {"value": site.value}
                if site.gain is not None:
                    watched |= {"query": site.query, "key": site.key}
                    enter = self._guard(partial(self._on_attention, site))
                    hooks.callback(site.attention.register_forward_pre_hook(enter, with_kwargs=True).remove)
                for what, module in watched.items():
                    keep = self._guard(partial(self._keep, site, what))
                    hooks.callback(module.register_forward_hook(keep).remove)
                before = self._guard(partial(self._on_output, site))
                hooks.callback(site.output.register_forward_pre_hook(before).remove)
            yield

    def reset(self) -> None:
        """Forget what a crashed or finished call of the denoiser left behind."""
        self._found.clear()
        self._ending.clear()
        self._masked.clear()

    def _on_stream(self, site: AnySite, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        stream = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
        if self._keeps_call() and isinstance(stream, torch.Tensor) and stream.ndim == 3:
            wide = torch.promote_types(stream.dtype, torch.float32)
            norms = torch.linalg.vector_norm(stream.detach(), dim=-1, dtype=wide)
            self._found[site.name, "stream"] = norms.float()

    def _keep_last(self, site: JointSite, module: nn.Module, args: Any, outputs: Any) -> None:
        if self._keeps_call():
            self._found[site.name, "last"] = outputs[-1].detach()

    def _on_block_end(self, site: JointSite, module: nn.Module, args: Any, outputs: Any) -> None:
        added = self._found.pop((site.name, "last"), None)
        for end in self._ending.pop(site.name, ()):
            if added is not None:
                end(torch.linalg.vector_norm(outputs[-1].detach().float() - added.float(), dim=-1))

    def _on_attention(self, site: Site, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        self._masked.discard(site.name)
        if kwargs.get("ip_adapter_masks") is not None:
            self._masked.add(site.name)

    def _keep(self, site: Site, what: str, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        if self._keeps_call():
            self._found[site.name, what] = output.detach()

    def _on_output(self, site: Site, module: nn.Module, args: tuple[Any, ...]) -> None:
        value, mixed = self._found.pop((site.name, "value"), None), args[0] if args else None
        if value is None or not self._keeps_call():
            return
        value = value.flatten(1, -2) if value.ndim > 3 else value
        if value.ndim != 3 or not isinstance(mixed, torch.Tensor) or mixed.shape[-1] != value.shape[-1]:
            self._lack(site.name, "its value and its output projection have other shapes")
            return
        value = _in_heads(value, site.heads)
        added: Callable[[int], torch.Tensor] | None = mixed.detach().__getitem__
        if site.gain is not None:
            added = self._beside_others(site, value)
        stream = self._found.pop((site.name, "stream"), None)
        if stream is not None and stream.shape != mixed.shape[:-1]:
            stream = None
        self._pass_on(site, value, added, stream)

    def _beside_others(self, site: Site, value: torch.Tensor) -> Callable[[int], torch.Tensor] | None:
        """The reference's own part of an output that other keys have a part in, with the factor on it."""
        query, key = (self._found.pop((site.name, what), None) for what in ("query", "key"))
        gain = None if site.gain is None else site.gain()
        if query is None or key is None or gain is None or site.name in self._masked:
            self._lack(site.name, "its part of the output is masked, or has a factor for each image")
            return None
        key = key.flatten(1, -2) if key.ndim > 3 else key
        query, key = (_in_heads(x, site.heads) for x in (query, key))
        return lambda row: mixed_values(query[row], key[row], value[row], site.scale) * gain

    def joint(
        self,
        site: JointSite,
        part: str,
        spans: Spans,
        value: torch.Tensor,
        added: Callable[[int], torch.Tensor],
    ) -> None:
        """A joint attention call: values of one reference's tokens, and how they are mixed."""
        gain = 1.0 if site.gain is None else site.gain()
        scaled = added if gain == 1 else None if gain is None else lambda row: added(row) * gain
        if gain is None:
            self._lack(site.name, "its part of the output has no single factor")

        def pass_on(stream: torch.Tensor | None) -> None:
            if stream is not None:  # of all queries, or of the last ones or the first
                moved = 0 if site.stream_first else stream.shape[1] - spans.queries
                generated = spans.generated.moved(moved)
                places = generated.positions()
                inside = int(places.min()) >= 0 and int(places.max()) < stream.shape[1]
                stream = stream[:, generated.where] if inside else None
            self._pass_on(site, value.detach(), scaled, stream, part)

        if site.block is not None:
            self._ending.setdefault(site.name, []).append(pass_on)
        else:
            pass_on(self._found.get((site.name, "stream")))

    def _pass_on(
        self,
        site: AnySite,
        value: torch.Tensor,
        added: Callable[[int], torch.Tensor] | None,
        stream: torch.Tensor | None,
        part: str = "",
    ) -> None:
        inner = value.shape[2] * value.shape[3]
        weight = None
        if not isinstance(site.output, nn.Identity):
            found = projection_weight(site.output)
            if isinstance(found, torch.Tensor):
                # A single block projects heads and its MLP at once; an offloaded weight comes as it runs.
                found = (found[:, :inner] if isinstance(site, JointSite) else found).to(value.device)
            if isinstance(found, str) or found.shape[1] != inner:
                why = found if isinstance(found, str) else "takes another number of values"
                self._lack(site.name, f"its output projection, a {type(site.output).__name__}, {why}")
                return
            weight = found
        if stream is None:
            self._lack(site.name, "the stream that it is added to is not seen")
        self._receive(ValueFlow(site, value, weight, added, stream, part))


def projection_weight(module: nn.Module | None) -> torch.Tensor | str:
    """The weight of a linear layer, or why it has no plain one: a LoRA around, quantised, out of reach."""
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return "has no plain weight to read"
    weight = held(module, "weight", offload_groups([module]))
    if weight is None:
        return "is offloaded to where it cannot be read"
    if type(weight) not in _PLAIN or not weight.is_floating_point():
        return f"is quantised: its weight is a {type(weight).__name__} of {weight.dtype}"
    return weight.detach()


def mixed_values(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    lse: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over keys of weight times value, [query, head * dim] float32, in blocks of queries.

    Query, key and value are [token, head, dim] of one row. ``lse`` [head, query] is the log-sum-exp over all
    keys, where there are more than these; ``mask`` is [head or 1, query or 1, key], as in an attention call.
    """
    heads, keys = query.shape[1], key.shape[0]
    block = max(1, _limit(query) // (4 * heads * keys))
    right, values = key.permute(1, 2, 0), value.transpose(0, 1)  # [head, dim, key], [head, key, dim]
    found = []
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        right, values = right.float(), values.float()
        for start in range(0, query.shape[0], block):
            part = slice(start, start + block)
            logits = torch.matmul(query[part].transpose(0, 1).float() * scale, right)
            if mask is not None:
                own = mask if mask.shape[-2] == 1 else mask[:, part]
                logits = logits.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else logits + own
            total = logits.logsumexp(-1) if lse is None else lse[:, part]
            # Not torch.softmax, which the witness would take for the model's own.
            weights = (logits - total[..., None]).exp_()
            found.append(torch.matmul(weights, values).transpose(0, 1).flatten(1))
    return torch.cat(found)


def _in_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    return tensor.reshape(*tensor.shape[:2], heads, -1)


def _limit(tensor: torch.Tensor) -> int:
    return _BLOCK_BYTES.get(tensor.device.type, _BLOCK_BYTES["cpu"])
