"""CLIP and DINO features by transformers, from weights on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from i2am.pipeline.features.contract import FeatureModel, Pixels, weights_fingerprint
from i2am.storage.errors import ConfigError, NotFound

DEFAULTS = {"clip": "openai/clip-vit-base-patch32", "dino": "facebook/dinov2-base"}
"""Hub ids, looked for in the local cache of the hub where no folder is named."""


def load_transformers(name: str, weights: Path | None, device: str) -> FeatureModel:
    """CLIP's projected image embedding, or DINO's pooled output (its CLS token)."""
    from transformers import AutoImageProcessor, AutoModel, CLIPVisionModelWithProjection

    place = str(weights or DEFAULTS[name])
    if weights is not None and not weights.is_dir():
        raise NotFound(
            f"no folder {weights}",
            expected="one that transformers' save_pretrained made",
            remedy="correct --weights",
        )
    kind = CLIPVisionModelWithProjection if name == "clip" else AutoModel
    try:
        local: dict[str, Any] = {"local_files_only": True}
        processor = AutoImageProcessor.from_pretrained(place, backend="pil", **local)
        network = kind.from_pretrained(place, use_safetensors=True, **local).to(device).eval()
    except (OSError, ValueError, KeyError) as error:
        got = " ".join(str(error).split())[:200]
        if weights is not None:
            expected = f"{kind.__name__} with safetensors weights and its preprocessor_config.json"
            raise ConfigError(f"weights of {name} {place}", expected=expected, got=got) from error
        raise NotFound(
            f"no weights of {name} features, {place}, on this machine",
            remedy=f"run `hf download {place}` where there is a network, or name a folder with --weights",
        ) from error  # fmt: skip

    @torch.no_grad()
    def extract(images: Pixels) -> Any:
        pixels = processor(list(images), return_tensors="pt")["pixel_values"].to(device)
        found = network(pixel_values=pixels)
        return (found.image_embeds if name == "clip" else found.pooler_output).float().cpu().numpy()

    shown = name if weights is None else f"{name} ({weights.name})"
    return FeatureModel(shown, weights_fingerprint(network, repr(processor.to_dict())), extract)
