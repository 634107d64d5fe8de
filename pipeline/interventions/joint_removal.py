"""Removal of reference patches from a joint sequence: in the denoiser's input, or at each kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import Spans, Tokens
from i2am.pipeline.compilation import original
from i2am.pipeline.interventions.removal import Removal, replaced
from i2am.pipeline.taps.call_arguments import EncoderCalls, call_arguments, with_argument
from i2am.storage.errors import CaptureError, InputError


class JointRemoval(Removal):
    """Layers that attend over text, generated and reference tokens at once."""

    _spans: Mapping[str, Spans] = {}
    _latest: Mapping[str, Spans] = {}
    _masked = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        denoiser = original(self._adapter.denoiser(self._pipe))
        self._encoders = EncoderCalls([*map(original, self._adapter.encoders(self._pipe))])
        with ExitStack() as hooks:
            hooks.enter_context(self._encoders.attached())
            hooks.callback(denoiser.register_forward_pre_hook(self._on_call, with_kwargs=True).remove)
            for site in self._sites if self._mode == "mask" else ():
                self.mask_attention(site.attention, partial(self._hidden, site.name), hooks)
                hooks.callback(site.attention.register_forward_hook(self._check(site.name)).remove)
            yield

    def _on_call(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        arguments = call_arguments(module, args, kwargs)
        given = arguments | self._encoders.take()
        now = self._adapter.spans(self._pipe, given, self._sites)  # type: ignore[arg-type]
        self._latest = self._latest if now is None else now
        latents = next(value for value in arguments.values() if isinstance(value, torch.Tensor))
        rows = self._roles.rows(len(latents))
        self._spans = {} if rows is None else self._latest
        if not self._spans:
            return None
        found = {site: self._chosen(spans) for site, spans in self._spans.items()}
        site, reference = next(iter(found.items()))
        gone = self.gone(f"the {len(self._sites)} joint layers", reference.layout)
        if self._mode == "mask" or now is None:  # or keys are kept of tokens that were already removed
            return None
        name, part = self._in_input(arguments, self._spans[site], reference)
        tokens = arguments[name]
        own = tokens[rows, part]
        new = own.mean(1, keepdim=True) if self._mode == "mean" else torch.zeros_like(own)
        changed = tokens.clone()
        changed[rows, part] = replaced(own, gone, new)
        return with_argument(module, args, kwargs, name, changed)

    def _chosen(self, spans: Spans) -> Tokens:
        if self._reference >= len(spans.references):
            raise InputError(
                "reference",
                expected=f"0 to {len(spans.references) - 1}",
                got=str(self._reference),
                remedy="choose one of the call's references",
            )
        return spans.references[self._reference]

    def _in_input(
        self, arguments: Mapping[str, Any], spans: Spans, reference: Tokens
    ) -> tuple[str, torch.Tensor]:
        """The denoiser's argument that holds a reference's tokens, and where.

        The keys of a joint sequence are the encoder's tokens, then the denoiser's own input.
        """
        given = (arguments.get(name) for name in ("encoder_hidden_states", "hidden_states"))
        encoded, own = (tokens.shape[1] if isinstance(tokens, torch.Tensor) else 0 for tokens in given)
        places = reference.positions()
        if spans.keys == encoded + own:
            if places.max() < encoded:
                return "encoder_hidden_states", places
            if places.min() >= encoded:
                return "hidden_states", places - encoded
        raise CaptureError(
            "ablation of reference tokens in the denoiser's input",
            expected=f"the {spans.keys} keys of its attention, references together",
            got=f"{encoded} tokens of an encoder and {own} of its own",
            remedy="hide them at the layers: mode='mask'",
        )

    def _hidden(self, site: str, tokens: int, keys: torch.Tensor | None) -> torch.Tensor | None:
        spans = self._spans.get(site)
        if spans is None or tokens != spans.keys or keys is None or self._masked:
            return None
        rows = self._roles.rows(len(keys))
        if rows is None:
            return None
        self._masked = True
        reference = self._chosen(spans)
        hidden = torch.zeros(len(keys), tokens, dtype=torch.bool, device=keys.device)
        gone = self.gone("of joint attention", reference.layout)
        hidden[rows, reference.where] = gone.to(keys.device)
        return hidden

    def _check(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            masked, self._masked = self._masked, False
            if name in self._spans and not masked:
                raise self.unmasked(name)

        return hook
