"""IP-Adapters of FLUX.1 (XLabs, InstantX): the double blocks' generated tokens attend to tokens of an image.

A softmax of its own beside the joint one: queries after normalisation and before rotary embedding, keys from
``attn.processor.to_k_ip.{i}`` of the i-th adapter. Its tokens, 4 or 16 of each image, have no place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from i2am.pipeline.adapters.contract import JointSite, Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.joint import JointAdapter, grid_of
from i2am.pipeline.adapters.unet import has_path
from i2am.pipeline.compilation import named_modules, original


class FluxIPAdapter(JointAdapter):
    """``FluxPipeline`` and its variants for images, inpainting and ControlNets, IP-Adapters loaded."""

    name = "flux-ip-adapter"
    pipelines = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxControlNetPipeline")

    def matches(self, pipe: Any) -> bool:
        paths = r"transformer_blocks\.\d+\.attn\.processor\.to_k_ip\.\d+"
        return super().matches(pipe) and has_path(getattr(pipe, self.part, None), paths)

    def sites(self, pipe: Any) -> Sequence[JointSite]:
        transformer = self.denoiser(pipe)
        found = [
            JointSite(f"{self.part}.{path}.processor.to_k_ip.{number}", original(attention))
            for path, attention in named_modules(transformer)
            if path.endswith(".attn")
            for number, _ in enumerate(getattr(getattr(attention, "processor", None), "to_k_ip", ()))
        ]
        if not found:
            raise self._no_layer(transformer, "processors with to_k_ip: pipe.load_ip_adapter(...)")
        return found

    def spans(
        self, pipe: Any, arguments: Mapping[str, Any], sites: Sequence[JointSite]
    ) -> Mapping[str, Spans]:
        """Counts of tokens are those of each adapter's projection."""
        ids = arguments["img_ids"]
        grid = grid_of((ids[0] if ids.ndim == 3 else ids)[:, 1:3])
        embeds = (arguments.get("joint_attention_kwargs") or {}).get("ip_adapter_image_embeds")
        if grid is None or not isinstance(embeds, list):
            raise self._no_reference(
                "ids of a grid, and embeddings of an image for each IP-Adapter",
                "no embeddings" if grid else "position ids that fill no rectangle",
                "give the pipeline ip_adapter_image=",
            )
        projection: Any = original(self.denoiser(pipe)).encoder_hid_proj
        rows = len(arguments["hidden_states"])
        counts = [
            own.shape[0] * own.shape[1] // rows * layer.num_image_text_embeds
            for own, layer in zip(embeds, projection.image_projection_layers, strict=True)
        ]
        generated, found = Tokens.after(0, TokenLayout(grid)), {}
        for site in sites:
            number = int(site.name.rpartition(".")[2])
            tokens, before = counts[number], counts[:number].count(counts[number])
            reference = Tokens.after(0, TokenLayout((0, 0), tokens))
            found[site.name] = Spans(
                generated.layout.tokens, tokens, generated, (reference,), static_keys=True, before=before
            )
        return found

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        return {"ip_adapter_image": "reference", "prompt": "prompt"}
