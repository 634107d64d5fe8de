"""The trained weights that come with the project."""

from __future__ import annotations

from pathlib import Path

import torch

from i2am.pipeline.embedded.painter import ReferencePainter
from i2am.storage.errors import InputError

FOLDER = Path(__file__).parent / "reference-painter"
"""A diffusers pipeline folder: float16 safetensors, configurations and the model card."""


def load_pipeline(device: str = "cpu", dtype: str = "float32") -> ReferencePainter:
    """The embedded pipeline with its trained weights, in "float32", "float16" or "bfloat16"."""
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise InputError("dtype", expected=" or ".join(known), got=repr(dtype))
    pipe = ReferencePainter.from_pretrained(FOLDER, dtype=known[dtype], use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    painter: ReferencePainter = pipe.to(device)
    return painter
