"""FLUX Redux as one pipeline: the prior makes embeddings of a reference, the base paints from them."""

from __future__ import annotations

from typing import Any


class ReduxPair:
    """A ``FluxPriorReduxPipeline`` and a ``FluxPipeline`` without text encoders, called as one."""

    def __init__(self, prior: Any, base: Any) -> None:
        self.prior, self.base = prior, base

    @property
    def scheduler(self) -> Any:
        return self.base.scheduler

    @property
    def name_or_path(self) -> str:
        return str(getattr(self.base, "name_or_path", ""))

    def set_progress_bar_config(self, **options: Any) -> None:
        for pipe in (self.prior, self.base):
            pipe.set_progress_bar_config(**options)

    def __call__(self, image: Any, **arguments: Any) -> Any:
        """Paint from one reference, or from one for each image; ``arguments`` are the base pipeline's."""
        import torch

        # The prior mixes the images of one call into one embedding: one call for each.
        each = [self.prior(single) for single in (image if isinstance(image, list) else [image])]
        return self.base(
            prompt_embeds=torch.cat([found.prompt_embeds for found in each]),
            pooled_prompt_embeds=torch.cat([found.pooled_prompt_embeds for found in each]),
            **arguments,
        )


def load(device: str, dtype: str, prior: str, base: str) -> ReduxPair:
    """Load both from folders or hub ids (``black-forest-labs/FLUX.1-Redux-dev``, ``.../FLUX.1-dev``).

    For ``function: i2am.pipeline.adapters.flux_redux_pipeline:load`` in a configuration.
    """
    import torch
    from diffusers import FluxPipeline, FluxPriorReduxPipeline

    options = {"torch_dtype": getattr(torch, dtype), "use_safetensors": True}
    without_text = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return ReduxPair(
        FluxPriorReduxPipeline.from_pretrained(prior, **options).to(device),
        FluxPipeline.from_pretrained(base, **without_text, **options).to(device),
    )
