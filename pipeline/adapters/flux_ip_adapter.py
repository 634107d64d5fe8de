"""IP-Adapters of FLUX.1 (XLabs, InstantX) and Chroma: the double blocks attend to tokens of an image.

A softmax of its own beside the joint one: queries after normalisation and before rotary embedding, keys from
``attn.processor.to_k_ip.{i}`` of the i-th adapter. Its tokens, 4 or 16 of each image, have no place. What it
gives is added, without a projection, at the end of the block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import JointSite, Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.joint import JointAdapter, grid_of
from i2am.pipeline.adapters.unet import edit_inputs, has_path
from i2am.pipeline.compilation import named_modules, original

TO_K_IP = r"transformer_blocks\.\d+\.attn\.processor\.to_k_ip\.\d+"


class FluxIPAdapter(JointAdapter):
    """FLUX.1 and Chroma, and their variants for images, inpainting and ControlNets, IP-Adapters loaded."""

    name = "flux-ip-adapter"
    pipelines: tuple[str, ...] = (
        "FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxControlNetPipeline", "Chroma",
    )  # fmt: skip
    first = 0
    """The number of the first adapter's image among the references."""

    def matches(self, pipe: Any) -> bool:
        return super().matches(pipe) and has_path(getattr(pipe, self.part, None), TO_K_IP)

    def sites(self, pipe: Any) -> Sequence[JointSite]:
        transformer = self.denoiser(pipe)
        found = [
            JointSite(
                f"{self.part}.{path}.attn.processor.to_k_ip.{number}",
                original(attention),
                nn.Identity(),
                block=original(block),
                gain=partial(_scale, attention, number),
                reference_index=self.first + number,
            )
            for path, block in named_modules(transformer)
            if isinstance(attention := getattr(block, "attn", None), nn.Module)
            for number, _ in enumerate(getattr(getattr(attention, "processor", None), "to_k_ip", ()))
        ]
        if not found:
            raise self._no_layer(transformer, "processors with to_k_ip: pipe.load_ip_adapter(...)")
        return found

    def spans(
        self, pipe: Any, arguments: Mapping[str, Any], sites: Sequence[JointSite]
    ) -> Mapping[str, Spans] | None:
        """Counts of tokens are those of each adapter's projection."""
        ids = arguments["img_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        own = (ids[:, 0] == ids[:, 0].min()).nonzero()[:, 0]  # not the reference of FLUX Kontext
        grid = grid_of(ids[own, 1:3])
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
            image.shape[0] * image.shape[1] // rows * layer.num_image_text_embeds
            for image, layer in zip(embeds, projection.image_projection_layers, strict=True)
        ]
        generated = Tokens.at(own, TokenLayout(grid))
        found = {}
        for site in sites:
            number = site.reference_index - self.first
            tokens, before = counts[number], counts[:number].count(counts[number])
            reference = Tokens.after(0, TokenLayout((0, 0), tokens))
            found[site.name] = Spans(
                len(ids), tokens, generated, (reference,), static_keys=True, before=before
            )
        return found

    def inputs(self, pipe: Any) -> Mapping[str, str | Sequence[str]]:
        return {"ip_adapter_image": "reference", "prompt": "prompt", **edit_inputs(pipe)}


def _scale(attention: Any, number: int) -> float:
    return float(attention.processor.scale[number])
