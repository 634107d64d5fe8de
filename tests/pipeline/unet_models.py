"""Small Stable Diffusion pipelines of diffusers' real classes, with and without IP-Adapters."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    DDIMScheduler,
    HeunDiscreteScheduler,
    MotionAdapter,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.pipeline.models import _unet, _vae

WIDTH, TEXT, CLIP = 32, 11, 24
"""Cross-attention width, text tokens, width of the image encoder."""


def _text() -> CLIPTextModel:
    config = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=16, num_attention_heads=4, num_hidden_layers=1, vocab_size=50
    )
    return CLIPTextModel(config).eval()


def stable_diffusion(kind: Any = StableDiffusionPipeline, scheduler: Any = None) -> Any:
    """Stable Diffusion or a pipeline with the same parts; prompts are given as embeddings."""
    torch.manual_seed(0)
    pipe = kind(
        vae=_vae(),
        text_encoder=_text(),
        tokenizer=None,
        unet=_unet(8 if kind is StableDiffusionInstructPix2PixPipeline else 4),
        scheduler=scheduler or DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl() -> StableDiffusionXLPipeline:
    """A UNet of SDXL's shape: deeper transformers at the coarser grid, added conditions."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=WIDTH,
    ).eval()
    pipe = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_text(),
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def heun() -> HeunDiscreteScheduler:
    """A second-order scheduler: it calls the model twice at all but one of its steps."""
    return HeunDiscreteScheduler(steps_offset=1)


def _projection(kind: str) -> dict[str, torch.Tensor]:
    """Weights of an image projection, by the original repository's names."""
    if kind == "base":
        norm = nn.LayerNorm(WIDTH).state_dict()
        projection = nn.Linear(CLIP, 4 * WIDTH).state_dict()
        return {f"{part}.{k}": v for part, w in (("proj", projection), ("norm", norm)) for k, v in w.items()}
    if kind == "full":
        parts = {
            "proj.0": nn.Linear(CLIP, CLIP),
            "proj.2": nn.Linear(CLIP, WIDTH),
            "proj.3": nn.LayerNorm(WIDTH),
        }
        return {f"{part}.{k}": v for part, module in parts.items() for k, v in module.state_dict().items()}
    return _resampler()


def _resampler(latents: int = 6, depth: int = 4, heads: int = 1) -> dict[str, torch.Tensor]:
    inner = 64 * heads
    parts: dict[str, nn.Module] = {
        "proj_in": nn.Linear(CLIP, WIDTH),
        "proj_out": nn.Linear(WIDTH, WIDTH),
        "norm_out": nn.LayerNorm(WIDTH),
    }
    for i in range(depth):
        parts |= {
            f"layers.{i}.0.norm1": nn.LayerNorm(WIDTH),
            f"layers.{i}.0.norm2": nn.LayerNorm(WIDTH),
            f"layers.{i}.0.to_q": nn.Linear(WIDTH, inner, bias=False),
            f"layers.{i}.0.to_kv": nn.Linear(WIDTH, 2 * inner, bias=False),
            f"layers.{i}.0.to_out": nn.Linear(inner, WIDTH, bias=False),
            f"layers.{i}.1.0": nn.LayerNorm(WIDTH),
            f"layers.{i}.1.1": nn.Linear(WIDTH, 4 * WIDTH, bias=False),
            f"layers.{i}.1.3": nn.Linear(4 * WIDTH, WIDTH, bias=False),
        }
    found = {f"{part}.{k}": v for part, module in parts.items() for k, v in module.state_dict().items()}
    return {"latents": torch.randn(1, latents, WIDTH), **found}


def ip_adapter_state(pipe: Any, kind: str) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights of an IP-Adapter ("base", "plus", "full"), by the original repository's names."""
    torch.manual_seed(len(kind))
    keys, number = {}, 1
    for name in pipe.unet.attn_processors:
        if name.endswith("attn2.processor") and "motion_modules" not in name:
            width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            for half in ("k", "v"):
                keys[f"{number}.to_{half}_ip.weight"] = torch.randn(width, WIDTH) * 0.3
            number += 2
    return {"image_proj": _projection(kind), "ip_adapter": keys}


def animate_diff() -> AnimateDiffPipeline:
    """Stable Diffusion with motion modules between the frames of a video."""
    base = stable_diffusion()
    motion = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=4,
    )
    unet = UNetMotionModel.from_unet2d(base.unet, motion).eval()
    parts = {name: base.components[name] for name in ("vae", "text_encoder", "scheduler")}
    pipe = AnimateDiffPipeline(tokenizer=None, unet=unet, motion_adapter=motion, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_ip_adapters(pipe: Any, *kinds: str) -> Any:
    """Load IP-Adapters the way ``load_ip_adapter`` does."""
    states = [ip_adapter_state(pipe, kind) for kind in kinds]
    pipe.unet._load_ip_adapter_weights(states, low_cpu_mem_usage=False)
    pipe.set_ip_adapter_scale([0.8] * len(kinds))
    return pipe


def image_embeds(kinds: tuple[str, ...], guidance: bool, patches: int = 4) -> list[torch.Tensor]:
    """What ``prepare_ip_adapter_image_embeds`` would give, [uncond, cond] rows of [row, image, ...]."""
    generator = torch.Generator().manual_seed(2)
    rows = 2 if guidance else 1  # the pipeline repeats one reference for all its prompts
    shapes = {
        "base": (rows, 1, CLIP),
        "plus": (rows, 1, 1 + patches, CLIP),
        "full": (rows, 1, 1 + patches, CLIP),
    }
    return [torch.randn(*shapes[kind], generator=generator) for kind in kinds]
