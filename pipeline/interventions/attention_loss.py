"""Losses over a model's own attention while it trains, read by the adapters and taps of a capture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn
from torch.nn import functional as F

from i2am.pipeline.adapters.contract import Adapter, AnySite, JointSite, Site, TokenLayout
from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.interventions.loss_terms import centre_variation, score_variance
from i2am.pipeline.recording.layer_selection import Layers, select_layers
from i2am.pipeline.taps.attention_calls import CallTap
from i2am.pipeline.taps.call_arguments import EncoderCalls, call_arguments
from i2am.pipeline.taps.projections import ProjectionTap, QueryKey, Receive
from i2am.storage.errors import CaptureError, InputError

Kind: TypeAlias = Literal["centre_variation", "score_variance"]


class AttentionLoss:
    """The loss of the attention calls that a model has made since the last :meth:`take`."""

    def __init__(
        self, kind: Kind, mask: torch.Tensor | None, layout: Callable[[QueryKey], TokenLayout]
    ) -> None:
        self.kind, self._layout = kind, layout
        self.mask = mask
        self._terms: list[torch.Tensor] = []

    @property
    def mask(self) -> torch.Tensor | None:
        """Where it counts: [row or 1, y, x] over the generated image, 1 inside; None: everywhere."""
        return self._mask

    @mask.setter
    def mask(self, mask: torch.Tensor | None) -> None:
        if mask is not None and mask.ndim == 4 and mask.shape[1] == 1:
            mask = mask[:, 0]
        if mask is not None and mask.ndim != 3:
            raise InputError("mask", expected="[row or 1, y, x]", got=str(tuple(mask.shape)))
        self._mask = mask

    def take(self) -> torch.Tensor:
        """The mean over the layers' calls, a float32 scalar with gradient; begins anew.

        Raises
        ------
        CaptureError
            The model has made no attention call inside the context since the last time.
        """
        if not self._terms:
            raise CaptureError(
                "attention loss",
                expected="a forward call of the model since the last take()",
                got="none",
                remedy="call the model inside the context, in the same thread, before take()",
            )
        terms, self._terms = self._terms, []
        return torch.stack(terms).mean()

    def receive(self, layer: QueryKey) -> None:
        """Add one layer's call; those of a validation, without gradient, do not count."""
        if not torch.is_grad_enabled():
            return
        layout = self._layout(layer)
        if layer.roles:
            raise CaptureError(
                f"layer {layer.site.name!r}: attention loss",
                expected="reference tokens at the same places in all rows",
                got=f"places known of rows {', '.join(layer.roles)} alone",
                remedy="train a model of another family",
            )
        if self.kind == "centre_variation" and not layout.grid[0] * layout.grid[1]:
            raise CaptureError(
                f"layer {layer.site.name!r}: the centre of its attention",
                expected="reference tokens that have a place",
                got=f"{layout.tokens} without one",
                remedy="leave the layer out with layers=, or give ref_grid=(rows, columns)",
            )
        with torch.autocast(layer.query.device.type, enabled=False):
            # Gradients of float64 models stay float64.
            query, key = (x if x.dtype == torch.float64 else x.float() for x in (layer.query, layer.key))
            if layout.grid[0] * layout.grid[1]:
                key = key[:, layout.prefix :]
            scores = query.transpose(1, 2) @ key.transpose(1, 2).transpose(-1, -2) * layer.scale
            inside = self._inside(layer)
            if self.kind == "score_variance":
                term = score_variance(scores, inside)
            else:
                term = centre_variation(scores, inside, layer.grid, layout.grid)
        self._terms.append(term)

    def _inside(self, layer: QueryKey) -> torch.Tensor:
        rows = layer.query.shape[0]
        if self._mask is None:
            shape = (rows, layer.query.shape[1])
            return torch.ones(shape, dtype=torch.bool, device=layer.query.device)
        if self._mask.shape[0] not in (1, rows):
            raise InputError("mask", expected=f"1 or {rows} rows, as the model's", got=str(len(self._mask)))
        share = F.adaptive_avg_pool2d(self._mask[:, None].to(layer.query.device).float(), layer.grid)
        return (share.flatten(1) >= 0.5).expand(rows, -1)


@contextmanager
def attention_loss(
    module: Any,
    kind: Kind = "centre_variation",
    *,
    mask: torch.Tensor | None = None,
    layers: Layers = None,
    adapter: str | Adapter | None = None,
    ref_grid: tuple[int, int] | None = None,
) -> Iterator[AttentionLoss]:
    """Add up a differentiable loss over a model's attention to its reference during training.

    Parameters
    ----------
    module
        A pipeline of a known family, or a denoiser alone, every cross-attention of which counts.
    kind
        "centre_variation": total variation over the generated grid of the mean reference place that each
        query attends to, in shares of the reference's side (StableVITON's attention loss).
        "score_variance": variance over the generated tokens of their scaled logits with each reference token.
    mask
        Where it counts: [row or 1, y, x] over the generated image, 1 inside; a token counts that is at least
        half inside. It may be set anew for each batch: ``attention.mask = ...``. None: everywhere.
    layers
        By name, pattern or number. A reference without a grid has no centre.
    adapter
        An adapter or its name; None: the one that matches.
    ref_grid
        (rows, columns) of the reference's tokens, the last ones of each layer; None: as the adapter knows it,
        which a denoiser alone cannot tell.

    Yields
    ------
    AttentionLoss
        ``attention.take()``: the mean over the layers called since the last time, a scalar to add to the
        loss. Where a layer's reference has a grid, its tokens without a place are left out.

    Raises
    ------
    CaptureError
        No adapter knows the model; gradient checkpointing is on, which computes layers twice.

    Examples
    --------
    >>> with i2am.attention_loss(pipe, "centre_variation", mask=hole) as attention:  # doctest: +SKIP
    ...     loss = mse(pipe.unet(noisy, t, tokens).sample, noise) + 0.01 * attention.take()
    """
    if kind not in get_args(Kind):
        raise InputError("kind", expected=" or ".join(get_args(Kind)), got=repr(kind))
    pipe = module
    if isinstance(module, nn.Module):
        pipe, adapter = SimpleNamespace(unet=module, transformer=module), adapter or "diffusers-text"
    family = find_adapter(pipe, adapter)
    _refuse_checkpointing(family.denoiser(pipe))
    loss = AttentionLoss(kind, mask, partial(_layout, pipe, family, ref_grid))
    with _attached(pipe, family, select_layers(layers, family.sites(pipe)), loss.receive):
        yield loss


@contextmanager
def _attached(pipe: Any, family: Adapter, sites: Sequence[AnySite], receive: Receive) -> Iterator[None]:
    """Taps that keep the graph, on ``sites``, while the context is open."""
    projections = ProjectionTap([s for s in sites if isinstance(s, Site)], receive, _direct, detach=False)
    joint = [s for s in sites if isinstance(s, JointSite)]
    calls = CallTap(joint, receive, lambda: True, _direct, detach=False)
    encoders = EncoderCalls(family.encoders(pipe))

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        projections.reset()
        if joint:
            given = call_arguments(module, args, kwargs) | encoders.take()
            calls.begin(family.spans(pipe, given, joint))

    with ExitStack() as hooks:
        hooks.enter_context(projections.attached())
        hooks.enter_context(calls.attached())
        hooks.enter_context(encoders.attached())
        denoiser = family.denoiser(pipe)
        hooks.callback(denoiser.register_forward_pre_hook(begin, with_kwargs=True).remove)
        yield


def _layout(pipe: Any, family: Adapter, ref_grid: tuple[int, int] | None, layer: QueryKey) -> TokenLayout:
    tokens = layer.key.shape[1]
    if ref_grid is not None:
        return TokenLayout(ref_grid, tokens - ref_grid[0] * ref_grid[1])
    if layer.layout is None and isinstance(layer.site, Site):
        return family.layout(pipe, layer.site, tokens, layer.grid)
    return layer.layout or TokenLayout((0, 0), tokens)


def _direct(callback: Callable[..., None]) -> Callable[..., None]:
    """No guard: an error in a loss that the user asked for ends the step."""
    return callback


def _refuse_checkpointing(denoiser: nn.Module) -> None:
    if any(getattr(module, "gradient_checkpointing", False) for module in denoiser.modules()):
        raise CaptureError(
            "attention loss of a model with gradient checkpointing",
            expected="each layer computed once a step",
            got="gradient checkpointing, which computes it again for the backward pass",
            remedy="call disable_gradient_checkpointing() on the model",
        )
