"""Small joint-attention pipelines of diffusers' real classes, with random weights."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    LongCatImageEditPipeline,
    LongCatImageTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from diffusers.pipelines.longcat_image.pipeline_longcat_image_edit import prepare_pos_ids

WIDTH = 32


def _flux_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
    ).eval()


def _flux_parts() -> dict[str, Any]:
    vae = AutoencoderKL(
        sample_size=32,
        block_out_channels=(4,),
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )
    empty = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": vae.eval(),
        "transformer": _flux_transformer(),
        **empty,
    }


def flux_kontext() -> FluxKontextPipeline:
    """Two double and two single blocks, two heads."""
    torch.manual_seed(0)
    pipe = FluxKontextPipeline(**_flux_parts())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux_fill_parts() -> dict[str, Any]:
    """As `flux_kontext`; the input is latents, kept latents and a mask."""
    torch.manual_seed(0)
    parts = _flux_parts()
    config = {**parts["transformer"].config, "in_channels": 12, "out_channels": 4}
    config.pop("_use_default_values")
    return {**parts, "transformer": FluxTransformer2DModel.from_config(config).eval()}


def longcat_edit() -> LongCatImageEditPipeline:
    """As `flux_kontext`, of the LongCat classes; any prompt is text of seven tokens."""
    torch.manual_seed(0)
    parts = _flux_parts()
    vae = AutoencoderKL.from_config({**parts["vae"].config, "latent_channels": 16}).eval()
    config = {**parts["transformer"].config, "in_channels": 64}
    transformer = LongCatImageTransformer2DModel.from_config(config).eval()
    processor = type("Processor", (), {"image_processor": None})()

    class OfAnyPrompt(LongCatImageEditPipeline):  # type: ignore[misc]
        def encode_prompt(self, prompt: Any, num_images_per_prompt: int, **arguments: Any) -> Any:
            text = torch.randn(1, 7, WIDTH, generator=torch.Generator().manual_seed(len(prompt)))
            return text.expand(num_images_per_prompt, -1, -1), prepare_pos_ids(num_token=7)

    pipe = OfAnyPrompt(parts["scheduler"], vae, None, None, processor, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux2(family: Any = Flux2KleinPipeline, **settings: Any) -> Any:
    """One of the FLUX.2 pipelines: two double and two single blocks, two heads, patches of 8 pixels."""
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=family is Flux2Pipeline,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4,) * 3,
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
    )
    pipe = family(FlowMatchEulerDiscreteScheduler(), vae.eval(), None, None, transformer.eval(), **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def chroma() -> ChromaPipeline:
    """As FLUX, with one text encoder and its modulation from one small network."""
    torch.manual_seed(0)
    parts = {name: part for name, part in _flux_parts().items() if not name.endswith("_2")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers' own
        parts["transformer"] = ChromaTransformer2DModel(
            in_channels=4,
            num_layers=2,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=16,
            approximator_hidden_dim=16,
            approximator_layers=1,
        )
    return ChromaPipeline(**parts)


State = dict[str, dict[str, torch.Tensor]]


def flux_ip_adapter_state(pipe: Any) -> State:
    """Random weights of an IP-Adapter of four tokens, by the names of a file."""
    inner, blocks = pipe.transformer.inner_dim, range(len(pipe.transformer.transformer_blocks))
    sizes = {"weight": (inner, WIDTH), "bias": (inner,)}
    layers = [f"{number}.to_{half}_ip" for number in blocks for half in "kv"]
    names = {f"{layer}.{kind}": size for layer in layers for kind, size in sizes.items()}
    return {
        "image_proj": {
            "proj.weight": torch.randn(4 * WIDTH, WIDTH),
            "proj.bias": torch.randn(4 * WIDTH),
            "norm.weight": torch.ones(WIDTH),
            "norm.bias": torch.zeros(WIDTH),
        },
        "ip_adapter": {name: torch.randn(size) * 0.3 for name, size in names.items()},
    }


def flux() -> FluxPipeline:
    torch.manual_seed(0)
    return FluxPipeline(**_flux_parts())


def flux_ip_adapter(adapters: int = 1, pipe: Any = None) -> Any:
    """FLUX or a relative with IP-Adapters, loaded the way ``load_ip_adapter`` does."""
    pipe = pipe or flux()
    states = [flux_ip_adapter_state(pipe) for _ in range(adapters)]
    pipe.transformer._load_ip_adapter_weights(states, low_cpu_mem_usage=False)
    pipe.set_ip_adapter_scale([0.7, 0.5] if adapters == 2 else 0.7)
    pipe.transformer.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3; the first of two blocks has dual attention."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=24,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    vae = AutoencoderKL(
        block_out_channels=(4,), latent_channels=4, norm_num_groups=1, use_quant_conv=False,
        use_post_quant_conv=False, shift_factor=0.06,
    )  # fmt: skip
    pipe = StableDiffusion3Pipeline(
        transformer.eval(), FlowMatchEulerDiscreteScheduler(), vae.eval(), *[None] * 6
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3_ip_adapter_state(pipe: Any) -> State:
    """As `flux_ip_adapter_state`, of five tokens."""
    projection = IPAdapterTimeImageProjection(
        embed_dim=WIDTH, output_dim=32, hidden_dim=32, heads=1, num_queries=5, timestep_in_dim=16
    )
    processors = [SD3IPAdapterJointAttnProcessor2_0(32, 32, 16, 32) for _ in pipe.transformer.attn_processors]
    own = {
        f"{number}.{name}": value
        for number, processor in enumerate(processors)
        for name, value in processor.state_dict().items()
    }
    return {"image_proj": projection.state_dict(), "ip_adapter": own}


def sd3_ip_adapter() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 with an IP-Adapter of scale 0.5."""
    pipe = sd3()
    pipe.transformer._load_ip_adapter_weights(sd3_ip_adapter_state(pipe), low_cpu_mem_usage=False)
    pipe.transformer.eval()
    return pipe


class Redux:
    """A base pipeline with the prior beside it, as a user's factory returns them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.base = FluxPipeline(**_flux_parts())
        self.base.set_progress_bar_config(disable=True)
        # Only the sizes of the prior's image encoder matter to capture.
        self.prior = type("FluxPriorReduxPipeline", (), {})()
        self.prior.image_encoder = SimpleNamespace(config=SimpleNamespace(image_size=8, patch_size=4))

    @property
    def scheduler(self) -> Any:
        return self.base.scheduler

    def __call__(self, **arguments: Any) -> Any:
        return self.base(**arguments)


def _qwen_parts() -> dict[str, Any]:
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": vae.eval(),
        "text_encoder": None,
        "tokenizer": None,
        "processor": None,
        "transformer": transformer.eval(),
    }


def qwen_edit() -> QwenImageEditPipeline:
    """Two blocks, three heads."""
    torch.manual_seed(0)
    pipe = QwenImageEditPipeline(**_qwen_parts())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def qwen_edit_plus() -> QwenImageEditPlusPipeline:
    """The variant that takes several images."""
    torch.manual_seed(0)
    pipe = QwenImageEditPlusPipeline(**_qwen_parts())
    pipe.set_progress_bar_config(disable=True)
    return pipe
