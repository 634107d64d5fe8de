"""Removal of reference patches from a joint sequence: in the denoiser's input, or at each kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import JointSite, Spans
from i2am.pipeline.compilation import original
from i2am.pipeline.interventions.removal import Removal, replaced
from i2am.pipeline.taps.call_arguments import EncoderCalls, call_arguments, with_argument
from i2am.storage.errors import CaptureError, InputError


class JointRemoval(Removal):
    """Layers that attend over text, generated and reference tokens at once."""

    _spans: Mapping[str, Spans] = {}
    _latest: Mapping[str, Spans] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        denoiser = original(self._adapter.denoiser(self._pipe))
        self._encoders = EncoderCalls([*map(original, self._adapter.encoders(self._pipe))])
        self._calls = Counter[tuple[str, int, int]]()  # of a site's module, by queries and keys
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
        numbers = {} if rows is None or not self._latest else self._numbers(self._latest)
        self._spans = {site: self._latest[site] for site in numbers}
        if not self._spans:
            return None
        site, number = next(iter(numbers.items()))
        reference = self._spans[site].references[number]
        gone = self.gone(f"the {len(self._sites)} joint layers", reference.layout)
        if self._mode == "mask" or now is None:  # or keys are kept of tokens that were already removed
            return None
        name, part = self._in_input(arguments, self._spans[site], number)
        tokens = arguments[name]
        own = tokens[rows, part]
        new = own.mean(1, keepdim=True) if self._mode == "mean" else torch.zeros_like(own)
        changed = tokens.clone()
        changed[rows, part] = replaced(own, gone, new)
        return with_argument(module, args, kwargs, name, changed)

    def _numbers(self, spans: Mapping[str, Spans]) -> dict[str, int]:
        """Which of its own references the chosen one is to each layer that attends to it."""
        first = {site.name: site.reference_index for site in self._sites if isinstance(site, JointSite)}
        numbers = {name: self._reference - first[name] for name in spans}
        found = {
            name: number for name, number in numbers.items() if 0 <= number < len(spans[name].references)
        }
        if not found:
            last = max(first[name] + len(own.references) for name, own in spans.items()) - 1
            raise InputError(
                "reference",
                expected=f"0 to {last}",
                got=str(self._reference),
                remedy="choose one of the call's references",
            )
        return found

    def _in_input(self, arguments: Mapping[str, Any], spans: Spans, number: int) -> tuple[str, torch.Tensor]:
        """The denoiser's argument that holds a reference's tokens, and where.

        The adapter says it, or keys are the encoder's tokens, words first, then the denoiser's own input.
        """
        if spans.inputs:
            part = spans.inputs[number]
            return "hidden_states", torch.arange(part.start, part.stop)
        given = (arguments.get(name) for name in ("encoder_hidden_states", "hidden_states"))
        encoded, own = (tokens.shape[1] if isinstance(tokens, torch.Tensor) else 0 for tokens in given)
        places, text = spans.references[number].positions(), spans.text
        words_first = text is None or (isinstance(text, slice) and not text.start)
        if words_first and spans.keys == encoded + own:
            if places.max() < encoded:
                return "encoder_hidden_states", places
            if places.min() >= encoded:
                return "hidden_states", places - encoded
        raise CaptureError(
            "ablation of reference tokens in the denoiser's input",
            expected=f"the {spans.keys} keys of its attention, words first, references together",
            got=f"{encoded} tokens of an encoder and {own} of its own",
            remedy="hide them at the layers: mode='mask'",
        )

    def _hidden(self, site: str, queries: int, tokens: int, keys: torch.Tensor | None) -> torch.Tensor | None:
        """Hidden keys of the layer's own call, and of others that see some of its keys."""
        spans = self._spans.get(site)
        rows = None if spans is None or keys is None else self._roles.rows(len(keys))
        if spans is None or keys is None or rows is None:
            return None
        number = self._calls[site, queries, tokens]
        self._calls[site, queries, tokens] += 1
        own = (queries, tokens, number) == (spans.queries, spans.keys, spans.before)
        seen = {(count, part.stop - part.start): part for count, part in spans.others}
        part = slice(None) if own else seen.get((queries, tokens))
        if part is None:
            return None
        reference = spans.references[self._numbers({site: spans})[site]]
        hidden = torch.zeros(len(keys), spans.keys, dtype=torch.bool, device=keys.device)
        gone = self.gone("of joint attention", reference.layout)
        hidden[rows, reference.where] = gone.to(keys.device)
        return hidden[:, part]

    def _check(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls = {each: count for each, count in self._calls.items() if each[0] == name}
            for each in calls:
                del self._calls[each]
            spans = self._spans.get(name)
            if spans is not None and calls.get((name, spans.queries, spans.keys), 0) <= spans.before:
                raise self.unmasked(name)

        return hook
