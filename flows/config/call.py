"""Arguments of a pipeline's call whose names say what they are, checked before a model is loaded."""

from __future__ import annotations

from typing import Any

COUNTS = {
    "num_inference_steps": 10_000,
    "num_images_per_prompt": 1024,
    "height": 16384,
    "width": 16384,
    "max_sequence_length": 1 << 20,
}
"""Integers from 1 up to these."""

NUMBERS = ("guidance_scale", "true_cfg_scale", "image_guidance_scale", "strength", "eta")


def check_call(call: dict[str, Any]) -> dict[str, Any]:
    """Refuse counts and numbers that no pipeline takes; everything else is the pipeline's to check."""
    for name, most in COUNTS.items():
        value = call.get(name)
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most
        ):
            raise ValueError(f"{name} from 1 to {most}")
    for name in NUMBERS:
        value = call.get(name)
        if isinstance(value, (bool, str, list, dict)):
            raise ValueError(f"{name} that is a number")
    return call
