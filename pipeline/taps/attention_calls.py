"""The call tap: q and k of joint attention, after normalisation and rotary embedding, at the attention call.

Diffusers' processors call ``dispatch_attention_fn``, which each module imports by name, [row, token, head,
dim]; others call ``scaled_dot_product_attention``, [row, head, token, dim]. Both are seen here while an
attention module of interest runs, and both are passed on untouched, so the image stays as it was.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import JointSite, Spans, TokenLayout, Tokens
from i2am.pipeline.taps.guard import Guard
from i2am.pipeline.taps.kernels import SDPA, FunctionCalls, sdpa_call
from i2am.pipeline.taps.logsumexp import row_logsumexp
from i2am.pipeline.taps.projections import QueryKey, Receive
from i2am.pipeline.taps.shared_wrapper import listening
from i2am.pipeline.taps.value_flow import FlowTap, mixed_values
from i2am.storage.errors import CaptureError
from i2am.storage.format.layer_spec import TEXT

_DISPATCH = "dispatch_attention_fn"


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
        self._spans: Mapping[str, Spans] = {}
        self._latest: Mapping[str, Spans] = {}
        self._awaited: list[tuple[JointSite, Spans]] = []  # of the attention module that runs now
        self._calls = Counter[tuple[int, int]]()  # of that module, by queries and keys
        self._queries: list[tuple[torch.Tensor, int, Tokens, str]] = []  # received of it, and by which layer
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

    def begin(self, spans: Mapping[str, Spans] | None) -> None:
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
        self._spans, self._awaited = {}, []
        self._leave_mode()

    def _on_dispatch(self, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> None:
        mask = args[0] if args else kwargs.get("attn_mask")
        scale = args[3] if len(args) > 3 else kwargs.get("scale")
        self._on_call(query, key, value, mask, scale)

    def _enter(self, sites: Sequence[JointSite]) -> Callable[..., None]:
        dispatches = _dispatching(sites[0]) is not None

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            found = [(site, self._spans[site.name]) for site in sites if site.name in self._spans]
            if not found or not self._keeps_call():
                return
            self._awaited = found
            self._calls.clear()
            self._queries.clear()
            if not dispatches:
                self._mode = FunctionCalls({SDPA}, self._guard(self._on_sdpa))
                self._mode.__enter__()  # type: ignore[no-untyped-call]

        return hook

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        awaited, self._awaited = self._awaited, []
        self._leave_mode()
        if awaited and output is not None:
            site, spans = awaited[0]
            raise CaptureError(
                f"layer {site.name!r}: its joint attention call",
                expected=f"a call of {_DISPATCH} or scaled_dot_product_attention with "
                f"{spans.queries} queries and {spans.keys} keys",
                got=f"none from {type(getattr(module, 'processor', module)).__name__}",
                remedy="use a processor that calls one of them, or another adapter",
            )

    def _leave_mode(self) -> None:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode = None

    def _on_sdpa(self, function: Any, *args: Any, **kwargs: Any) -> None:
        call = sdpa_call(*args, **kwargs)
        if call.query is not None and call.key is not None and call.value is not None:
            query, key, value = (x.transpose(1, 2) for x in (call.query, call.key, call.value))
            self._on_call(query, key, value, call.mask, call.scale)

    def _on_call(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scale: float | None
    ) -> None:
        """An attention call: that of a layer awaited, if it has its numbers of queries and keys."""
        if not self._awaited or query.ndim != 4:
            return
        call = query.shape[1], key.shape[1], self._calls[query.shape[1], key.shape[1]]
        self._calls[call[:2]] += 1
        fitting = [each for each in self._awaited if call == (each[1].queries, each[1].keys, each[1].before)]
        if not fitting:
            return
        site, spans = fitting[0]
        self._awaited.remove(fitting[0])
        if self._detach:
            query, key = query.detach(), key.detach()
        factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
        rows = spans.generated.where
        if mask is not None and mask.shape[-2] != 1:
            mask = mask[..., rows, :]
        generated = query[:, rows]
        lse = row_logsumexp(generated, key, factor, mask) if self._detach else None
        owner = self._owner(site, query, spans.generated)
        for part, tokens in self._parts(site, spans):
            reference = key[:, tokens.where]
            self._receive(
                QueryKey(
                    site, generated, reference, spans.generated.layout.grid, factor, tokens.layout, lse, part,
                    owner if part or owner != site.name else "", spans.static_keys and part != TEXT,
                    (spans.generated, tokens), (spans.queries, spans.keys), spans.roles,
                )
            )  # fmt: skip
            if self._flows is not None and lse is not None:
                columns = tokens.where
                own = value[:, columns].detach()
                added = _mixer(generated, reference, own, factor, lse, _columns(mask, generated, columns))
                self._flows.joint(site, part, spans, own, added)

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


def _words(spans: Spans) -> int:
    """How many keys of a call are of words."""
    text = spans.text
    if text is None:
        return 0
    return len(text) if isinstance(text, torch.Tensor) else max(0, text.stop - text.start)


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
