"""Removal of reference patches from a joint sequence: in the denoiser's input, or at each kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import Spans
from i2am.pipeline.compilation import original
from i2am.pipeline.interventions.removal import Removal, replaced
from i2am.pipeline.taps.call_arguments import call_arguments, with_argument
from i2am.storage.errors import InputError


class JointRemoval(Removal):
    """Layers that attend over text, generated and reference tokens at once."""

    _spans: Spans | None = None
    _masked = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        denoiser = original(self._adapter.denoiser(self._pipe))
        with ExitStack() as hooks:
            hooks.callback(denoiser.register_forward_pre_hook(self._on_call, with_kwargs=True).remove)
            for site in self._sites if self._mode == "mask" else ():
                self.mask_attention(site.attention, self._hidden, hooks)
                hooks.callback(site.attention.register_forward_hook(self._check(site.name)).remove)
            yield

    def _on_call(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        arguments = call_arguments(module, args, kwargs)
        spans = self._spans = self._adapter.spans(self._pipe, arguments)
        if self._reference >= len(spans.references):
            raise InputError(
                "reference",
                expected=f"0 to {len(spans.references) - 1}",
                got=str(self._reference),
                remedy="choose one of the call's references",
            )
        start, layout = spans.references[self._reference]
        # The joint sequence is the encoder's tokens, then the denoiser's own input.
        before = start < spans.start
        name, offset = ("encoder_hidden_states", 0) if before else ("hidden_states", spans.start)
        tokens = arguments[name]
        rows = self._roles.rows(len(tokens))
        if rows is None:
            self._spans = None
            return None
        gone = self.gone(f"the {len(self._sites)} joint layers", layout)
        if self._mode == "mask":
            return None
        part = slice(start - offset, start - offset + layout.tokens)
        own = tokens[rows, part]
        new = own.mean(1, keepdim=True) if self._mode == "mean" else torch.zeros_like(own)
        changed = tokens.clone()
        changed[rows, part] = replaced(own, gone, new)
        return with_argument(module, args, kwargs, name, changed)

    def _hidden(self, tokens: int, keys: torch.Tensor | None) -> torch.Tensor | None:
        spans = self._spans
        if spans is None or tokens != spans.length or keys is None or self._masked:
            return None
        rows = self._roles.rows(len(keys))
        if rows is None:
            return None
        self._masked = True
        start, layout = spans.references[self._reference]
        hidden = torch.zeros(len(keys), tokens, dtype=torch.bool, device=keys.device)
        gone = self.gone("of joint attention", layout)
        hidden[rows, start : start + layout.tokens] = gone.to(keys.device)
        return hidden

    def _check(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            masked, self._masked = self._masked, False
            if self._spans is not None and not masked:
                raise self.unmasked(name)

        return hook
