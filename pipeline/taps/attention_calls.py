"""The call tap: q and k of joint attention, after normalisation and rotary embedding, at the attention call.

Diffusers' processors call ``dispatch_attention_fn``, which each module imports by name, [row, token, head,
dim]; others call ``scaled_dot_product_attention``, [row, head, token, dim]. Both are seen here while an
attention module of interest runs, and both are passed on untouched, so the image stays as it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import JointSite, Spans
from i2am.pipeline.taps.guard import Guard
from i2am.pipeline.taps.kernels import SDPA, FunctionCalls, sdpa_call
from i2am.pipeline.taps.logsumexp import row_logsumexp
from i2am.pipeline.taps.projections import QueryKey, Receive
from i2am.pipeline.taps.shared_wrapper import listening
from i2am.pipeline.taps.value_flow import FlowTap, mixed_values
from i2am.storage.errors import CaptureError

_DISPATCH = "dispatch_attention_fn"


class CallTap:
    """Sees the attention calls of ``sites``.

    ``receive`` gets query, key and log-sum-exp of the generated rows, once for each reference; nothing is
    computed where ``keeps_call`` says that the current denoiser call is not kept. ``detach=False`` passes on
    tensors through which a loss can flow back, and no log-sum-exp. ``flows`` is told of the values.
    """

    def __init__(
        self,
        sites: Sequence[JointSite],
        receive: Receive,
        keeps_call: Callable[[], bool],
        guard: Guard,
        detach: bool = True,
        flows: FlowTap | None = None,
    ) -> None:
        self._sites, self._receive, self._keeps_call = tuple(sites), receive, keeps_call
        self._guard, self._detach, self._flows = guard, detach, flows
        self._spans: Spans | None = None
        self._current: JointSite | None = None
        self._seen = False
        self._mode: FunctionCalls | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Register every hook and wrapper; where one fails, the earlier ones are removed."""
        with ExitStack() as hooks:
            for module in dict.fromkeys(filter(None, map(_dispatching, self._sites))):
                hooks.enter_context(listening(module, _DISPATCH, self._guard(self._on_dispatch)))
            for site in self._sites:
                enter, leave = self._guard(self._enter_site(site)), self._guard(self._leave_site)
                hooks.callback(site.attention.register_forward_pre_hook(enter).remove)
                hooks.callback(site.attention.register_forward_hook(leave, always_call=True).remove)
            hooks.callback(self.reset)
            yield

    def begin(self, spans: Spans) -> None:
        """A denoiser call begins, whose tokens stand as ``spans`` says."""
        self._spans = spans

    def reset(self) -> None:
        """Forget what a crashed or finished call of the denoiser left behind."""
        self._spans = self._current = None
        self._leave_mode()

    def _on_dispatch(self, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> None:
        mask = args[0] if args else kwargs.get("attn_mask")
        scale = args[3] if len(args) > 3 else kwargs.get("scale")
        self._on_call(query, key, value, mask, scale)

    def _enter_site(self, site: JointSite) -> Callable[..., None]:
        dispatches = _dispatching(site) is not None

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if self._spans is None or not self._keeps_call():
                return
            self._current, self._seen = site, False
            if not dispatches:
                self._mode = FunctionCalls({SDPA}, self._guard(self._on_sdpa))
                self._mode.__enter__()  # type: ignore[no-untyped-call]

        return hook

    def _leave_site(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        site, self._current = self._current, None
        self._leave_mode()
        if site is not None and not self._seen and output is not None:
            raise CaptureError(
                f"layer {site.name!r}: its joint attention call",
                expected=f"a call of {_DISPATCH} or scaled_dot_product_attention with "
                f"{self._spans.length if self._spans else 0} tokens",
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
        """An attention call inside the current site: the joint one has all tokens on both sides."""
        spans, site = self._spans, self._current
        if spans is None or site is None or self._seen or query.ndim != 4:
            return
        if query.shape[1] != spans.length or key.shape[1] != spans.length:
            return
        self._seen = True
        if self._detach:
            query, key = query.detach(), key.detach()
        factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
        rows = slice(spans.start, spans.start + spans.grid[0] * spans.grid[1])
        if mask is not None and mask.shape[-2] != 1:
            mask = mask[..., rows, :]
        generated = query[:, rows]
        lse = row_logsumexp(generated, key, factor, mask) if self._detach else None
        for number, (start, layout) in enumerate(spans.references):
            reference = key[:, start : start + layout.tokens]
            part = f"reference-{number}" if number else ""
            places = (spans.start, start, (spans.length, spans.length))
            self._receive(
                QueryKey(site, generated, reference, spans.grid, factor, layout, lse, part, *places)
            )
            if self._flows is not None and lse is not None:
                columns = slice(start, start + layout.tokens)
                own = value[:, columns].detach()
                added = _mixer(generated, reference, own, factor, lse, _columns(mask, generated, columns))
                self._flows.joint(site, part, spans, own, added)


def _columns(mask: torch.Tensor | None, query: torch.Tensor, columns: slice) -> torch.Tensor | None:
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
