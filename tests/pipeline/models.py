"""Small models of the real classes, with random weights."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PaintByExamplePipeline,
    PNDMScheduler,
    StableDiffusionImageVariationPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from i2am.pipeline.embedded.encoder import ReferenceEncoder
from i2am.pipeline.embedded.painter import PLACES, ReferencePainter


def painter(seed: int = 0) -> ReferencePainter:
    """A painter of the embedded model's classes with 20-pixel images and 25 reference tokens, untrained."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=7 * 4 + PLACES,
        out_channels=12,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    encoder = ReferenceEncoder(image_size=20, channels=16, token_dim=24)
    scheduler = DDIMScheduler(prediction_type="sample", timestep_spacing="trailing")
    pipe = ReferencePainter(unet=unet.eval(), reference_encoder=encoder.eval(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _unet(in_channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=32,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    ).eval()


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=[32, 64],
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
    ).eval()


def _clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        projection_dim=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=5,
        image_size=32,
        patch_size=4,
    )


def paint_by_example() -> PaintByExamplePipeline:
    """Diffusers' Paint-by-Example with a PNDM scheduler, which calls the denoiser once more."""
    torch.manual_seed(0)
    pipe = PaintByExamplePipeline(
        vae=_vae(),
        image_encoder=PaintByExampleImageEncoder(_clip(), proj_size=32).eval(),
        unet=_unet(9),
        scheduler=PNDMScheduler(skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_variation() -> StableDiffusionImageVariationPipeline:
    """Diffusers' Stable Diffusion image variation."""
    torch.manual_seed(0)
    pipe = StableDiffusionImageVariationPipeline(
        vae=_vae(),
        image_encoder=CLIPVisionModelWithProjection(_clip()).eval(),
        unet=_unet(4),
        scheduler=PNDMScheduler(skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(seed: int, height: int = 20, width: int = 20) -> Image.Image:
    """A random RGB image."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def hole(height: int = 20, width: int = 20) -> Image.Image:
    """A mask whose middle half is to be painted."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : -(height // 4), width // 4 : -(width // 4)] = 255
    return Image.fromarray(mask)
