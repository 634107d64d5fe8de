"""A factory such as a research repository would have: it returns a pipeline that is ready to be called."""

from __future__ import annotations

from typing import Any


def build(device: str, dtype: str, timestep_spacing: str = "leading") -> Any:
    """Load the embedded pipeline and space its timesteps another way."""
    from i2am.pipeline.embedded.weights import load_pipeline

    pipe = load_pipeline(device=device, dtype=dtype)
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, timestep_spacing=timestep_spacing
    )
    return pipe
