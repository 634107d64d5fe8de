"""What the table of situations does to a pipeline: adapters, hooks, processors, offload, compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import nn

from tests.pipeline.situation_models import TEXT, Family, attention_modules, root_of


class _More(nn.Module):
    """What a LoRA does to a projection."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.base_layer, self.more = base, nn.Linear(base.in_features, base.out_features, bias=False)
        self.more.to(base.weight.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.more(x)


def _lora(pipe: Any, family: Family) -> None:
    for module in attention_modules(pipe, family):
        module.to_q, module.to_k = _More(module.to_q), _More(module.to_k)


def _projection_hook(pipe: Any, family: Family) -> None:
    for module in attention_modules(pipe, family):
        module.to_q.register_forward_hook(lambda module, args, output: output * 1.5)


def _attention_hook(pipe: Any, family: Family) -> None:
    for module in attention_modules(pipe, family):
        module.register_forward_pre_hook(lambda module, args: (args[0] * 1.5, *args[1:]))


def _offload_hook(pipe: Any, family: Family) -> None:
    """Weights come before a layer's call and go after it, as with accelerate's hooks."""
    for module in attention_modules(pipe, family):
        for part in (module.to_q, module.to_k):
            weight = part.weight.data.clone()

            def come(part: Any, args: Any, weight: torch.Tensor = weight) -> None:
                part.weight.data = weight.clone()

            def go(part: Any, args: Any, output: Any) -> None:
                part.weight.data = torch.zeros(0)

            part.register_forward_pre_hook(come)
            part.register_forward_hook(go)


def _processor(make: Callable[[], Any]) -> Callable[[Any, Family], None]:
    return lambda pipe, family: _denoiser(pipe, family).set_attn_processor(make())


def _method(name: str, **arguments: Any) -> Callable[[Any, Family], None]:
    return lambda pipe, family: getattr(pipe, name)(**arguments)


def _of_model(name: str, *given: Any, **arguments: Any) -> Callable[[Any, Family], None]:
    return lambda pipe, family: getattr(_denoiser(pipe, family), name)(*given, **arguments)


def _mask(pipe: Any, family: Family) -> None:
    mask = torch.ones(1, TEXT)
    mask[:, 4:] = 0
    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "encoder_attention_mask": mask}), with_kwargs=True
    )


def _compile_whole(pipe: Any, family: Family) -> None:
    part = family.roots[0][0]
    setattr(pipe, part, torch.compile(getattr(pipe, part), backend="eager", fullgraph=True))


def _denoiser(pipe: Any, family: Family) -> Any:
    return root_of(pipe, family.roots[0][0])


class _Own(AttnProcessor2_0):
    """A user's processor that sharpens the attention after the projections."""

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **rest: Any) -> Any:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        parts = attn.to_q(hidden_states) * 3, attn.to_k(context), attn.to_v(context)
        heads = [x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in parts]
        out = nn.functional.scaled_dot_product_attention(*heads)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


CHANGES: dict[str, Callable[[Any, Family], Any]] = {
    "LoRA": _lora,
    "hook on to_q": _projection_hook,
    "hook on attention": _attention_hook,
    "offloaded weights": _offload_hook,
    "layerwise casting": _of_model(
        "enable_layerwise_casting", storage_dtype=torch.bfloat16, compute_dtype=torch.float32
    ),
    "written-out attention": _processor(AttnProcessor),
    "SDPA processor": _processor(AttnProcessor2_0),
    "processor that scales": _processor(_Own),
    "sliced processor": _processor(lambda: SlicedAttnProcessor(4)),
    "uneven slices": _processor(lambda: SlicedAttnProcessor(3)),
    "attention slicing": _method("enable_attention_slicing", slice_size=1),
    "freeu": _method("enable_freeu", s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    "vae tiling": lambda pipe, family: pipe.vae.enable_tiling(),
    "fused projections": _of_model("fuse_qkv_projections"),
    "math backend": _of_model("set_attention_backend", "_native_math"),
    "channels last": lambda pipe, family: _denoiser(pipe, family).to(memory_format=torch.channels_last),
    "forward chunking": _of_model("enable_forward_chunking", 1),
    "IP scale 0.3": _method("set_ip_adapter_scale", scale=0.3),
    "IP scale 0": _method("set_ip_adapter_scale", scale=0.0),
    "reference mask": _mask,
    "compiled whole": _compile_whole,
    "compiled in place": _of_model("compile", backend="eager", fullgraph=True),
    "compiled blocks": _of_model("compile_repeated_blocks", backend="eager", fullgraph=True),
}
