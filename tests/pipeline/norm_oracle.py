"""Norms of values and contributions by hand: in double precision, from weights and what modules were given.

Nothing of the project is used, and none of its places to look: of cross-attention the inputs of the attention
module, and the stream from the sum that it was added to; of joint attention what the kernel was given, and
the stream from the input of the block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

Norms = tuple[np.ndarray, np.ndarray]
"""Value norms [head, ref], contributions [gen], of one row."""


@dataclass
class Cross:
    """Calls of cross-attention modules: (module, tokens, context, stream), by module path."""

    seen: dict[str, list[tuple[Any, torch.Tensor, Any, torch.Tensor]]] = field(default_factory=dict)


@contextmanager
def watch_cross(root: nn.Module, suffixes: tuple[str, ...] = ("attn2", "attn2_plus")) -> Iterator[Cross]:
    found, hooks = Cross(), []
    modules = dict(root.named_modules())
    for path, attention in modules.items():
        if not path.endswith(suffixes):
            continue
        block = modules[path.rpartition(".")[0]]
        last: dict[str, Any] = {}

        def on_attention(module, args, kwargs, output, last=last):
            given = [*args, kwargs.get("encoder_hidden_states", kwargs.get("context"))]
            last["call"] = module, given[0], given[1], output

        def on_sum(total, path=path, last=last):
            if "call" in last:
                module, tokens, context, output = last.pop("call")
                found.seen.setdefault(path, []).append((module, tokens, context, total - output))

        hooks.append(attention.register_forward_hook(on_attention, with_kwargs=True))
        after = getattr(block, "norm3", None) if path.endswith("attn2") else None
        if after is not None:
            hooks.append(after.register_forward_pre_hook(lambda _, args, on_sum=on_sum: on_sum(args[0])))
        else:
            hooks.append(block.register_forward_hook(lambda _, args, output, on_sum=on_sum: on_sum(output)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _given(mixed: np.ndarray, value: np.ndarray, output: np.ndarray, stream: np.ndarray) -> Norms:
    """From mixed values [head, gen, dim], values [head, ref, dim] and W_o [channel, head * dim]."""
    heads, gen, dim = mixed.shape
    norms = np.zeros(value.shape[:2])
    added = np.zeros((gen, len(output)))
    for head in range(heads):
        own = output[:, head * dim : (head + 1) * dim]
        for token in range(value.shape[1]):
            norms[head, token] = np.sqrt(((own @ value[head, token]) ** 2).sum())
        added += mixed[head] @ own.T
    return norms, np.array(
        [np.sqrt((a**2).sum()) / np.sqrt((s**2).sum()) for a, s in zip(added, stream, strict=True)]
    )


def cross_norms(
    call: tuple[Any, torch.Tensor, Any, torch.Tensor], row: int, adapter: int | None = None, gain: float = 1.0
) -> Norms:
    """Of one call and row; `adapter` is the number of an IP-Adapter, whose part is multiplied by `gain`."""
    module, tokens, context, stream = call
    key, value = module.to_k, module.to_v
    if isinstance(context, tuple):
        text, images = context
        context = text if adapter is None else images[adapter].flatten(1, -2)
    if adapter is not None:
        key, value = module.processor.to_k_ip[adapter], module.processor.to_v_ip[adapter]
    heads = module.heads
    q, k, v = (
        _numbers(x) @ _numbers(layer.weight).T
        for x, layer in ((tokens[row], module.to_q), (context[row], key), (context[row], value))
    )
    q, k, v = (x.reshape(len(x), heads, -1).transpose(1, 0, 2) for x in (q, k, v))
    powers = np.exp(q @ k.transpose(0, 2, 1) * q.shape[-1] ** -0.5)
    mixed = powers / powers.sum(-1, keepdims=True) @ v * gain
    return _given(mixed, v, _numbers(module.to_out[0].weight), _numbers(stream[row]))


ATTENTION = ("attn", "attention", "self_attn", "attn1")
"""What blocks call their joint attention."""


def attention_of(block: nn.Module) -> Any:
    return next(getattr(block, name) for name in ATTENTION if hasattr(block, name))


def has_own_output(attention: Any) -> bool:
    return getattr(attention, "to_out", None) is not None


@contextmanager
def watch_joint(transformer: nn.Module, monkeypatch: Any) -> Iterator[dict[str, list[Any]]]:
    """Kernel arguments and stream of each call, (block, query, key, value, mask, stream), by path."""
    found: dict[str, list[Any]] = {}
    inside: list[tuple[str, Any]] = []
    streams: dict[Any, torch.Tensor] = {}
    kernel, hooks = F.scaled_dot_product_attention, []

    def spy(query, key, value, attn_mask=None, *args, **kwargs):
        if inside:
            path, block = inside[-1]
            found.setdefault(path, []).append((block, query, key, value, attn_mask, streams[block]))
        return kernel(query, key, value, attn_mask, *args, **kwargs)

    def keep_stream(block, args, kwargs):
        stream = args[0] if args else kwargs["hidden_states"]
        words = kwargs.get("encoder_hidden_states")
        if words is not None and not has_own_output(attention_of(block)):
            # In FLUX's single blocks the words are in front of the stream, in JoyImage's behind it.
            behind = hasattr(attention_of(block), "img_attn_proj")
            stream = torch.cat([stream, words] if behind else [words, stream], 1)
        streams[block] = stream.clone()

    for path, block in transformer.named_modules():
        name = next((name for name in ATTENTION if hasattr(block, name)), None)
        if name is None:
            continue
        hooks.append(block.register_forward_pre_hook(keep_stream, with_kwargs=True))
        for each in (name, "attn2"):  # Stable Diffusion 3 has blocks of two
            attention, entry = getattr(block, each, None), (f"{path}.{each}", block)
            if attention is not None:
                hooks.append(
                    attention.register_forward_pre_hook(lambda *_, entry=entry: inside.append(entry))
                )
                hooks.append(attention.register_forward_hook(lambda *_: inside.pop() and None))
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        yield found
    for hook in hooks:
        hook.remove()


@contextmanager
def watch_ends(transformer: nn.Module) -> Iterator[dict[str, list[torch.Tensor]]]:
    """The stream of FLUX's double blocks after their feed-forward part, of each call, by path."""
    found: dict[str, list[torch.Tensor]] = {}
    hooks = []
    for number, block in enumerate(transformer.transformer_blocks):
        ends = found.setdefault(f"transformer_blocks.{number}.attn", [])
        last: dict[str, Any] = {}

        def on_end(module, args, output, ends=ends, last=last):
            ends.append(last["before"] + last["gate"][:, None] * output)

        hooks += [
            block.norm1.register_forward_hook(lambda *a, last=last: last.update(gate=a[-1][4])),
            block.norm2.register_forward_pre_hook(lambda _, args, last=last: last.update(before=args[0])),
            block.ff.register_forward_hook(on_end),
        ]
    yield found
    for hook in hooks:
        hook.remove()


def joint_norms(call: Any, row: int, gen: Any, ref: Any, gain: float = 1.0, projected: bool = True) -> Norms:
    """Of one call and row: generated tokens and one reference's, by their places in the joint sequence.

    `gain` is on what is added; where it is not `projected`, it is added as it is.
    """
    block, query, key, value, mask, stream = call
    q, k, v = (_numbers(x[row]) for x in (query, key, value))
    logits = q[:, gen] @ k.transpose(0, 2, 1) * q.shape[-1] ** -0.5
    if mask is not None:
        seen = mask.expand(len(query), -1, -1, -1)[row].numpy()
        seen = seen if seen.shape[1] == 1 else seen[:, gen]
        logits = np.where(seen, logits, -np.inf) if seen.dtype == bool else logits + seen
    powers = np.exp(logits)
    weights = (powers / powers.sum(-1, keepdims=True))[..., ref]
    inner = v.shape[0] * v.shape[2]
    gives = weights @ v[:, ref] * gain
    if not projected:
        return _given(gives, v[:, ref], np.eye(inner), _numbers(stream[row])[gen])
    attention = attention_of(block)
    other = getattr(attention, "img_attn_proj", None) or getattr(block, "proj_out", None)
    output = attention.to_out if has_own_output(attention) else other
    output = output if isinstance(output, nn.Linear) else output[0]
    own = _numbers(stream[row])[np.arange(q.shape[1])[gen] - (q.shape[1] - stream.shape[1])]
    return _given(gives, v[:, ref], _numbers(output.weight)[:, :inner], own)
