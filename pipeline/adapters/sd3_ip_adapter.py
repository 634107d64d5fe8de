"""IP-Adapters of Stable Diffusion 3 (InstantX): image tokens attend to themselves and to tokens of an image.

A second softmax beside the joint one, over [generated, reference]: queries and keys with norms of the
adapter's own, keys from ``attn.processor.to_k_ip``. Its 64 tokens are latents of a resampler that is told the
timestep: they have no place, and change over time. Blocks with dual attention have it in ``attn2`` too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import JointSite, Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.joint import GuidedInOneCall, output_and_stream
from i2am.pipeline.adapters.unet import edit_inputs, has_path
from i2am.pipeline.compilation import named_modules, original


class SD3IPAdapter(GuidedInOneCall):
    """``StableDiffusion3Pipeline`` and its variants, an IP-Adapter loaded."""

    name = "sd3-ip-adapter"
    pipelines = ("StableDiffusion3",)

    def matches(self, pipe: Any) -> bool:
        paths = r"transformer_blocks\.\d+\.attn2?\.processor\.to_k_ip"
        return super().matches(pipe) and has_path(getattr(pipe, self.part, None), paths)

    def sites(self, pipe: Any) -> Sequence[JointSite]:
        transformer = self.denoiser(pipe)
        found = [
            self._site(f"{self.part}.{path}.{name}.processor.to_k_ip", block, original(attention))
            for path, block in named_modules(transformer)
            for name in ("attn", "attn2")
            if isinstance(attention := getattr(block, name, None), nn.Module)
            and hasattr(processor := getattr(attention, "processor", None), "to_k_ip")
            and _scale(processor) != 0  # else the model does not call it
        ]
        if not found:
            loaded = "processors with to_k_ip: pipe.load_ip_adapter(...)"
            raise self._no_layer(transformer, f"{loaded}, with a scale: pipe.set_ip_adapter_scale(0.5)")
        return found

    def _site(self, name: str, block: nn.Module, attention: nn.Module) -> JointSite:
        output, stream = output_and_stream(block, attention)
        if ".attn2." in name:
            stream = None  # the first attention's output comes between
        return JointSite(name, attention, output, stream, gain=partial(_scale, attention.processor))

    def spans(
        self, pipe: Any, arguments: Mapping[str, Any], sites: Sequence[JointSite]
    ) -> Mapping[str, Spans]:
        """Keys are the generated tokens, then the latents of the resampler."""
        transformer: Any = original(self.denoiser(pipe))
        if "ip_adapter_image_embeds" not in (arguments.get("joint_attention_kwargs") or {}):
            raise self._no_reference("embeddings of an image", "none", "give the pipeline ip_adapter_image=")
        patch = transformer.config.patch_size
        rows, columns = (int(side) // patch for side in arguments["hidden_states"].shape[-2:])
        generated = Tokens.after(0, TokenLayout((rows, columns)))
        tokens = int(transformer.image_proj.latents.shape[1])
        reference = Tokens.after(rows * columns, TokenLayout((0, 0), tokens))
        found = Spans(rows * columns, rows * columns + tokens, generated, (reference,))
        return dict.fromkeys((site.name for site in sites), found)

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        return {"ip_adapter_image": "reference", "prompt": "prompt", **edit_inputs(pipe)}


def _scale(processor: Any) -> float:
    return float(processor.scale)
