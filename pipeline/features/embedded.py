"""Features that need no weights from outside: tokens of the embedded model's own reference encoder, pooled.

They tell colours and patterns of the project's 64 x 64 scenes apart, and nothing is claimed of them beyond: a
Fréchet distance of these features is not the published FID, which is Inception's.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from i2am.pipeline.embedded.encoder import ReferenceEncoder
from i2am.pipeline.embedded.weights import FOLDER
from i2am.pipeline.features.contract import Pixels


@torch.no_grad()
def features(images: Pixels) -> NDArray[np.float32]:
    """Mean and standard deviation over the tokens, (image, 192), of uint8 images [image, y, x, 3]."""
    encoder = _encoder()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    size = encoder.config.image_size
    if pixels.shape[-2:] != (size, size):
        pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    tokens = encoder(pixels)
    found: NDArray[np.float32] = torch.cat([tokens.mean(1), tokens.std(1)], 1).numpy()
    return found


@cache
def _encoder() -> ReferenceEncoder:
    encoder: ReferenceEncoder = ReferenceEncoder.from_pretrained(
        FOLDER, subfolder="reference_encoder", use_safetensors=True, low_cpu_mem_usage=False
    )
    encoder.eval()
    return encoder
