"""What the table of situations does to a pipeline: adapters, hooks, processors, offload, compilation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import group_offloading
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


def _groups(level: str, disk: bool = False) -> Callable[[Any, Family], None]:
    """Groups of weights that come for their call and go after it: into memory, or into files."""

    def change(pipe: Any, family: Family) -> None:
        if not hasattr(group_offloading, "send_to_device"):  # accelerate's; everything is on the CPU already
            group_offloading.send_to_device = lambda given, *device, **options: given
        place = tempfile.mkdtemp() if disk else None
        blocks = 1 if level == "block_level" else None
        options = {"offload_type": level, "num_blocks_per_group": blocks, "offload_to_disk_path": place}
        pipe.enable_group_offload(torch.device("cpu"), **options)

    return change


def _sequential(pipe: Any, family: Family) -> None:
    """What `enable_sequential_cpu_offload` does; its own call has no CPU to bring the weights to."""
    from accelerate import cpu_offload

    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)


def _torchao(pipe: Any, family: Family) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(_denoiser(pipe, family), Int8WeightOnlyConfig())


def _quanto(pipe: Any, family: Family) -> None:
    from optimum.quanto import freeze, qint8, quantize

    quantize(_denoiser(pipe, family), weights=qint8)
    freeze(_denoiser(pipe, family))


def every_linear(make: Callable[[nn.Linear], nn.Module]) -> Callable[[Any, Family], None]:
    """Another layer in place of each linear one whose weights come in blocks of 32."""

    def change(pipe: Any, family: Family) -> None:
        denoiser = _denoiser(pipe, family)
        for path, layer in list(denoiser.named_modules()):
            if type(layer) is nn.Linear and layer.in_features % 32 == 0:
                parent, _, name = path.rpartition(".")
                setattr(denoiser.get_submodule(parent), name, make(layer))

    return change


def _gguf(layer: nn.Linear) -> nn.Module:
    import gguf
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    found = GGUFLinear(layer.in_features, layer.out_features, layer.bias is not None, torch.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    packed = torch.from_numpy(gguf.quants.quantize(layer.weight.detach().numpy(), kind))
    found.weight, found.bias = GGUFParameter(packed, quant_type=kind), layer.bias
    return found


def _four_bits(layer: nn.Linear) -> nn.Module:
    import bitsandbytes

    found = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, torch.float32, quant_type="nf4"
    )
    found.load_state_dict(layer.state_dict())
    return found.to("cpu")


def _eight_bits(layer: nn.Linear) -> nn.Module:
    import bitsandbytes

    found = bitsandbytes.nn.Linear8bitLt(
        layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False
    )
    found.load_state_dict(layer.state_dict())
    return found.to("cpu")


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
    "layerwise casting to float8": _of_model(
        "enable_layerwise_casting", storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    ),
    "offloaded leaves": _groups("leaf_level"),
    "offloaded blocks": _groups("block_level"),
    "leaves on disk": _groups("leaf_level", disk=True),
    "blocks on disk": _groups("block_level", disk=True),
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

NEEDS = {
    "model offload": "accelerate",
    "sequential offload": "accelerate",
    "torchao": "torchao",
    "quanto": "optimum.quanto",
    "gguf": "gguf",
    "4 bits": "bitsandbytes",
    "8 bits": "bitsandbytes",
}
"""Changes that need a package which may be absent, so that the table has no row of theirs."""
CHANGES |= {
    "model offload": _method("enable_model_cpu_offload", device="cpu"),
    "sequential offload": _sequential,
    "torchao": _torchao,
    "quanto": _quanto,
    "gguf": every_linear(_gguf),
    "4 bits": every_linear(_four_bits),
    "8 bits": every_linear(_eight_bits),
}
