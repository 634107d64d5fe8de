"""A factory as a user would write it: the embedded pipeline's class, small, with fixed random weights."""

from __future__ import annotations

from typing import Any


def build(device: str, dtype: str, delay: float = 0.0) -> Any:
    """Make a pipeline of about 0.1 million parameters; ``delay`` seconds are slept in every denoiser call."""
    import time

    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel

    from pipeline.embedded.encoder import ReferenceEncoder
    from pipeline.embedded.painter import ReferencePainter

    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=28,
        out_channels=12,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=96,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    if delay:
        unet.register_forward_pre_hook(lambda *_: time.sleep(delay))
    pipe = ReferencePainter(unet=unet, reference_encoder=ReferenceEncoder(), scheduler=DDIMScheduler())
    return pipe.to(device, getattr(torch, dtype))


def not_a_pipeline(device: str, dtype: str) -> int:
    """Return what no capture can use."""
    return 3
