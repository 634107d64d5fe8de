"""The embedded model's architecture, in one place: what training creates and the weights fill."""

from __future__ import annotations

from diffusers import DDIMScheduler, UNet2DConditionModel

from i2am.pipeline.embedded.encoder import ReferenceEncoder
from i2am.pipeline.embedded.painter import PLACES, ReferencePainter

FOLD = 2
"""Pixels are folded FOLD by FOLD into channels, an exact, weightless stand-in for a latent space."""


def build_painter(widths: tuple[int, int, int] = (32, 64, 128)) -> ReferencePainter:
    """The pipeline with fresh weights, for 64 by 64 images and 256 reference tokens.

    Seven cross-attention layers look at the reference: three at 16 by 16 positions, four at 8 by 8. The UNet
    predicts the clean image: 32 channels cannot carry the noise that v-prediction asks for, which left
    speckle (Li & He, 2025). A terminal signal-to-noise ratio of zero (Lin et al., 2024) starts from pure
    noise in training too, so that colours are not biased towards grey.
    """
    cells = FOLD * FOLD
    unet = UNet2DConditionModel(
        sample_size=64 // FOLD,
        in_channels=3 * cells + 3 * cells + cells + PLACES,  # noisy image, source, mask, place in it
        out_channels=3 * cells,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=96,
        attention_head_dim=4,  # heads, in spite of the configuration's name
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=True,
        set_alpha_to_one=True,
    )
    return ReferencePainter(unet=unet, reference_encoder=ReferenceEncoder(), scheduler=scheduler)
