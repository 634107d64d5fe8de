"""The call tap: q and k of joint attention, after normalisation and rotary embedding, at the attention call.

Diffusers' processors call ``dispatch_attention_fn``, which each module imports by name, [row, token, head,
dim]; others call ``scaled_dot_product_attention``, [row, head, token, dim], or write the softmax out. All are
seen here while an attention module of interest runs, and passed on untouched, so the image stays as it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import AnySpans, JointSite, LateSpans, Spans, TokenLayout, Tokens
from i2am.pipeline.taps.guard import Guard
from i2am.pipeline.taps.kernels import SDPA, SOFTMAX, FunctionCalls, KernelCall, dispatched_call, sdpa_call
from i2am.pipeline.taps.logsumexp import row_logsumexp
from i2am.pipeline.taps.projections import QueryKey, Receive
from i2am.pipeline.taps.shared_wrapper import listening
from i2am.pipeline.taps.value_flow import FlowTap, mixed_values
from i2am.pipeline.taps.written_out import PRODUCTS, Products
from i2am.storage.errors import CaptureError
from i2am.storage.format.layer_spec import TEXT

_DISPATCH = "dispatch_attention_fn"


@dataclass(slots=True)
class _Running:
    """An attention module that runs now; others may run inside it."""

    module: nn.Module
    sites: list[tuple[JointSite, AnySpans]]
    dispatches: bool
    awaited: list[tuple[JointSite, AnySpans]]
    calls: list[tuple[int, int]] = field(default_factory=list)  # queries and keys of each so far
    products: Products = field(default_factory=Products)

    def take(self, queries: int, keys: int) -> tuple[JointSite, Spans] | None:
        """A call is made: the layer awaited whose call it is, if there is one."""
        alike = [each for each in self.awaited if _fits(each[1], queries, keys)]
        fitting = [each for each in alike if self.earlier(each[1]) == (each[1].before or 0)]
        self.calls.append((queries, keys))
        if not fitting:
            return None
        self.awaited.remove(fitting[0])
        site, spans = fitting[0]
        return site, spans if isinstance(spans, Spans) else spans.at(queries, keys)

    def earlier(self, spans: AnySpans) -> int:
        """How many of the calls are such as the layer's own."""
        return sum(_fits(spans, *call) for call in self.calls)


class CallTap:
    """Sees the attention calls of ``sites``.

    ``receive`` gets query, key and log-sum-exp of the generated rows, once for each reference; nothing is
    computed where ``keeps_call`` says that the current denoiser call is not kept. ``detach=False`` passes on
    tensors through which a loss can flow back, and no log-sum-exp. ``flows`` is told of the values. ``text``
    asks for the keys of words too.
    """

    def __init__(
        self,
        sites: Sequence[JointSite],
        receive: Receive,
        keeps_call: Callable[[], bool],
        guard: Guard,
        detach: bool = True,
        flows: FlowTap | None = None,
        text: bool = False,
    ) -> None:
        self._text = text
        self.sites, self._receive, self._keeps_call = tuple(sites), receive, keeps_call
        self._guard, self._detach, self._flows = guard, detach, flows
        self._spans: Mapping[str, AnySpans] = {}
        self._latest: Mapping[str, AnySpans] = {}
        self._running: list[_Running] = []
        self._scales: dict[str, float] = {}  # of layers whose softmax is written out
        self._queries: list[tuple[torch.Tensor, int, Tokens, str]] = []  # received, and by which layer
        self._mode: FunctionCalls | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Register every hook and wrapper; where one fails, the earlier ones are removed."""
        with ExitStack() as hooks:
            for module in dict.fromkeys(filter(None, map(_dispatching, self.sites))):
                hooks.enter_context(listening(module, _DISPATCH, self._guard(self._on_dispatch)))
            for attention in dict.fromkeys(site.attention for site in self.sites):
                own = [site for site in self.sites if site.attention is attention]
                enter, leave = self._guard(self._enter(own)), self._guard(self._leave)
                hooks.callback(attention.register_forward_pre_hook(enter).remove)
                hooks.callback(attention.register_forward_hook(leave, always_call=True).remove)
            hooks.callback(self.reset)
            yield

    def begin(self, spans: Mapping[str, AnySpans] | None) -> None:
        """A denoiser call begins; ``spans`` is what the adapter says of it."""
        if spans is None and not self._latest:
            raise CaptureError(
                "joint attention: keys that are kept from an earlier call",
                expected="a call in the same sample context that makes them",
                got="none",
                remedy="make the whole generation inside one sample context",
            )
        self._latest = self._latest if spans is None else spans
        self._spans = self._latest

    def reset(self) -> None:
        """Forget what a crashed or finished call of the denoiser left behind."""
        self._spans = {}
        self._running.clear()
        self._leave_mode()

    def _on_dispatch(self, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> None:
        if self._running and self._running[-1].dispatches:
            self._on_kernel(dispatched_call(query, key, value, *args, **kwargs))

    def _enter(self, sites: Sequence[JointSite]) -> Callable[..., None]:
        dispatches = _dispatching(sites[0]) is not None

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            found = [(site, self._spans[site.name]) for site in sites if site.name in self._spans]
            if not found or not self._keeps_call():
                return
            self._running.append(_Running(module, found, dispatches, found.copy()))
            self._queries.clear()
            if not dispatches and self._mode is None:
                self._mode = FunctionCalls({SDPA, *SOFTMAX, *PRODUCTS}, self._guard(self._on_function))
                self._mode.__enter__()  # type: ignore[no-untyped-call]

        return hook

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._running or self._running[-1].module is not module:
            return
        running = self._running.pop()
        self._queries.clear()
        if not self._running:
            self._leave_mode()
        for site, spans in running.sites if output is not None else ():
            lost = (site, spans) in running.awaited
            if lost or (spans.before is None and running.earlier(spans) > 1):
                raise _unclear(site, spans, running)

    def _leave_mode(self) -> None:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode = None

    def _on_function(self, function: Any, *args: Any, **kwargs: Any) -> None:
        if not self._running or self._running[-1].dispatches:
            return
        products = self._running[-1].products
        if function in PRODUCTS:
            products.note(function, args)
            return
        call = sdpa_call(*args, **kwargs) if function is SDPA else products.call(args, kwargs)
        if call is not None:
            self._on_kernel(call)

    def _on_kernel(self, call: KernelCall) -> None:
        if call.query is not None and call.key is not None:
            query, key = (x.transpose(1, 2) for x in (call.query, call.key))
            value = None if call.value is None else call.value.transpose(1, 2)
            self._on_call(query, key, value, call.mask, call.scale, call.logits)

    def _on_call(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor | None,
        mask: Any,
        scale: float | None,
        logits: torch.Tensor | None = None,
    ) -> None:
        """An attention call: that of a layer awaited, if it has its numbers of queries and keys.

        ``logits`` [row * head, query, key], with their mask, are those of a softmax that is written out.
        """
        if query.ndim != 4:
            return
        found = self._running[-1].take(int(query.shape[1]), int(key.shape[1]))
        if found is None:
            return
        site, spans = found
        query, key, value = _with_heads(site, spans, query, key, value)
        if self._detach:
            query, key = query.detach(), key.detach()
        factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
        if logits is not None:
            factor = self._scale(site, factor)
        rows = spans.generated.where
        if mask is not None and mask.shape[-2] != 1:
            mask = mask[..., rows, :]
        generated = query[:, rows]
        lse = None
        if self._detach and logits is not None:
            by_head = logits.reshape(query.shape[0], query.shape[2], *logits.shape[1:])
            lse = by_head[:, :, rows].float().logsumexp(-1)
        elif self._detach:
            lse = row_logsumexp(generated, key, factor, mask)
        owner = self._owner(site, query, spans.generated)
        for part, tokens in self._parts(site, spans):
            reference = key[:, tokens.where]
            if part == TEXT and not spans.roles:  # other rows may have their words elsewhere
                _check_words(site, _columns(mask, generated, tokens.where))
            self._receive(
                QueryKey(
                    site, generated, reference, spans.generated.layout.grid, factor, tokens.layout, lse, part,
                    owner if part or owner != site.name else "", spans.static_keys and part != TEXT,
                    (spans.generated, tokens), (spans.queries, spans.keys), spans.roles,
                )
            )  # fmt: skip
            if self._flows is not None and lse is not None and value is not None:
                columns = tokens.where
                own = value[:, columns].detach()
                added = _mixer(generated, reference, own, factor, lse, _columns(mask, generated, columns))
                self._flows.joint(site, part, spans, own, added)

    def _scale(self, site: JointSite, factor: float) -> float:
        """The first factor that was read off the layer's logits, where this is the same but for rounding."""
        first = self._scales.setdefault(site.name, factor)
        return first if abs(first - factor) < 1e-2 * abs(first) else factor

    def _parts(self, site: JointSite, spans: Spans) -> Iterator[tuple[str, Tokens]]:
        """The keys that are received: those of each reference, and of words where they are asked for."""
        for number, tokens in enumerate(spans.references):
            yield f"reference-{site.reference_index + number}" if number else "", tokens
        if self._text and (count := _words(spans)) and spans.text is not None:
            yield TEXT, Tokens(spans.text, TokenLayout((0, 0), count))
        elif self._text and not any(map(_words, self._spans.values())):
            raise CaptureError(
                f"layer {site.name!r}: keys of words", expected="some in its attention call",
                got="none that its adapter knows of", remedy="leave text=True out",
            )  # fmt: skip

    def _owner(self, site: JointSite, query: torch.Tensor, generated: Tokens) -> str:
        """The layer of this module that was received first with these queries, else ``site`` itself."""
        if query.is_inference():  # whether it has been changed in place since is not told
            return site.name
        for known, version, rows, name in self._queries:
            same = known.data_ptr() == query.data_ptr() and known.stride() == query.stride()
            if same and known.shape == query.shape and version == query._version and rows == generated:
                return name
        self._queries.append((query, query._version, generated, site.name))
        return site.name


def _words(spans: AnySpans) -> int:
    """How many keys of a call are of words; 1 where that is not known yet."""
    if isinstance(spans, LateSpans):
        return int(spans.words)
    text = spans.text
    if text is None:
        return 0
    return len(text) if isinstance(text, torch.Tensor) else max(0, text.stop - text.start)


def _unfolded(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """[row * head, token, 1, dim] as [row, token, head, dim]."""
    rows, tokens, _, dim = tensor.shape
    return tensor.reshape(rows // heads, heads, tokens, dim).transpose(1, 2)


def _fits(spans: AnySpans, queries: int, keys: int) -> bool:
    return spans.queries in (None, queries) and spans.keys in (None, keys)


def _unclear(site: JointSite, spans: AnySpans, running: _Running) -> CaptureError:
    """The error of a module that did not make the layer's attention call, or made several like it."""
    sizes = f"{spans.queries or 'any'} queries and {spans.keys or 'any'} keys"
    which = "one call" if spans.before is None else f"call {spans.before}" if spans.before else "a call"
    calls = ", ".join(f"{queries} queries and {keys} keys" for queries, keys in running.calls)
    kind = type(getattr(running.module, "processor", running.module)).__name__
    return CaptureError(
        f"layer {site.name!r}: its joint attention call",
        expected=f"{which} of {_DISPATCH} or scaled_dot_product_attention with {sizes}",
        got=f"{calls or 'none'} from {kind}",
        remedy="use a processor that calls one of them, without attention slicing, or an adapter that says "
        "which call it is",
    )


def _with_heads(
    site: JointSite, spans: Spans, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Query, key and value with their heads on an axis of their own; rows of a slice alone are refused."""
    if spans.heads is not None and query.shape[2] == 1 and query.shape[0] % spans.heads == 0:
        query, key = (_unfolded(x, spans.heads) for x in (query, key))
        value = None if value is None else _unfolded(value, spans.heads)
    if spans.rows not in (None, query.shape[0]):
        raise CaptureError(
            f"layer {site.name!r}: rows of its attention call",
            expected=f"the {spans.rows} of the latents",
            got=str(query.shape[0]),
            remedy="turn attention slicing off; say heads: in a described model that has them among its "
            "rows; or leave the layer out with layers=",
        )
    return query, key, value


def _check_words(site: JointSite, mask: torch.Tensor | None) -> None:
    """Refuse words that are masked out: those of a shorter prompt beside a longer one."""
    if mask is None or not mask.numel():
        return
    hidden = ~mask if mask.dtype == torch.bool else mask < -1000  # -inf, or a large number added
    if bool(hidden.any()):
        raise CaptureError(
            f"layer {site.name!r}: keys of words",
            expected="as many words in every row",
            got="some that are masked out",
            remedy="make one sample a call, give prompts of one length, or leave text=True out",
        )


def _columns(
    mask: torch.Tensor | None, query: torch.Tensor, columns: slice | torch.Tensor
) -> torch.Tensor | None:
    """Some keys' part of a mask, [row, head or 1, query or 1, key]."""
    if mask is None:
        return None
    mask = mask.reshape(*[1] * (4 - mask.ndim), *mask.shape).expand(query.shape[0], -1, -1, -1)
    return mask[..., columns]


def _mixer(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    lse: torch.Tensor,
    mask: torch.Tensor | None,
) -> Callable[[int], torch.Tensor]:
    """The sum over one reference's keys of weight times value, of a row."""

    def mixed(row: int) -> torch.Tensor:
        own = None if mask is None else mask[row]
        return mixed_values(query[row], key[row], value[row], scale, lse[row], own)

    return mixed


def _dispatching(site: JointSite) -> ModuleType | None:
    """The module whose own name for diffusers' dispatch the site's processor calls, if it has one."""
    processor = getattr(site.attention, "processor", site.attention)
    module = sys.modules.get(type(processor).__module__)
    return module if hasattr(module, _DISPATCH) else None
