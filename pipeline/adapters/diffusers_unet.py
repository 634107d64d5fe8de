"""Diffusers pipelines whose ``UNet2DConditionModel`` attends to reference tokens through ``attn2``.

Serves the embedded :class:`~pipeline.embedded.painter.ReferencePainter` (a grid of patch tokens) and, with
one pooled CLIP token, Paint-by-Example (Yang et al., 2023) and Stable Diffusion image variation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipeline.adapters.contract import Site, TokenLayout
from storage.errors import CaptureError

_Layout = Callable[[Any], TokenLayout]


@dataclass(frozen=True, slots=True)
class _Family:
    """What differs between pipelines of this kind: where reference tokens stand, and how it is called."""

    layout: _Layout
    inputs: Mapping[str, str]


def _patch_grid(pipe: Any) -> TokenLayout:
    rows, columns = pipe.reference_encoder.grid
    return TokenLayout(grid=(int(rows), int(columns)))


def _pooled(pipe: Any) -> TokenLayout:
    return TokenLayout(grid=(0, 0), prefix=1)


_FAMILIES: dict[str, _Family] = {
    "ReferencePainter": _Family(
        _patch_grid, {"image": "source", "mask_image": "mask", "reference_image": "reference"}
    ),
    "PaintByExamplePipeline": _Family(
        _pooled, {"image": "source", "mask_image": "mask", "example_image": "reference"}
    ),
    "StableDiffusionImageVariationPipeline": _Family(_pooled, {"image": "reference"}),
}


class DiffusersUNet:
    """Adapter of the pipelines named in this module's table, and of their subclasses."""

    name = "diffusers-unet"

    def matches(self, pipe: Any) -> bool:
        """True for a pipeline, or a subclass of one, that this adapter knows."""
        return any(parent.__name__ in _FAMILIES for parent in type(pipe).__mro__)

    def denoiser(self, pipe: Any) -> nn.Module:
        """The pipeline's UNet."""
        unet = getattr(pipe, "unet", None)
        if not isinstance(unet, nn.Module):
            raise CaptureError(
                f"adapter {self.name!r}: the pipeline's unet",
                expected="a torch module",
                got=type(unet).__name__,
                remedy="name another adapter, or give a pipeline that has a UNet",
            )
        return unet

    def sites(self, pipe: Any) -> Sequence[Site]:
        """The ``attn2`` of every transformer block."""
        unet = self.denoiser(pipe)
        found = [self._site(*place) for place in _cross_attentions(unet)]
        if not found:
            classes = sorted({type(m).__name__ for m in unet.modules() if "ttention" in type(m).__name__})
            raise CaptureError(
                f"adapter {self.name!r}: no layer to capture",
                expected="modules named '*.transformer_blocks.*.attn2' with cross-attention",
                got=f"a {type(unet).__name__} with {', '.join(classes) or 'no attention'}",
                remedy="name the adapter of this model's family",
            )
        return found

    def layout(self, pipe: Any, tokens: int) -> TokenLayout:
        """The encoder's patch grid, or one pooled token."""
        layout = self._family(pipe).layout(pipe)
        if layout.tokens != tokens:
            raise CaptureError(
                f"adapter {self.name!r}: reference tokens of {type(pipe).__name__}",
                expected=f"{layout.tokens} ({layout.prefix} without a place, grid {layout.grid})",
                got=str(tokens),
                remedy="check the reference encoder's configuration against the denoiser's input",
            )
        return layout

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        """One block of rows without guidance; [uncond, cond] with it."""
        known = {1: ("cond",), 2: ("uncond", "cond")}
        if rows_per_sample not in known:
            raise CaptureError(
                f"adapter {self.name!r}: rows for one sample in a denoiser call",
                expected="1 (no guidance) or 2 (uncond, cond)",
                got=str(rows_per_sample),
                remedy="declare every image of the call: cap.samples([...]) takes one id for each",
            )
        return known[rows_per_sample]

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """Argument names of the pipeline's call."""
        return self._family(pipe).inputs

    def _family(self, pipe: Any) -> _Family:
        for parent in type(pipe).__mro__:
            if parent.__name__ in _FAMILIES:
                return _FAMILIES[parent.__name__]
        raise CaptureError(
            f"adapter {self.name!r}: pipeline class",
            expected="one of " + ", ".join(_FAMILIES),
            got=type(pipe).__name__,
            remedy="write an adapter for it (CONTRIBUTING.md) and name that",
        )

    def _site(self, name: str, attention: nn.Module, transformer: nn.Module) -> Site:
        changed = [norm for norm in ("norm_q", "norm_k") if getattr(attention, norm, None) is not None]
        if changed or getattr(attention, "fused_projections", False):
            raise CaptureError(
                f"layer {name!r}: its scores",
                expected="made from the outputs of to_q and to_k alone",
                got="normalised by " + " and ".join(changed) if changed else "fused projections",
                remedy="call pipe.unfuse_qkv_projections(), or use an adapter that taps the attention call",
            )
        return Site(
            name=f"unet.{name}",
            query=attention.get_submodule("to_q"),
            key=attention.get_submodule("to_k"),
            grid=transformer,
            heads=int(attention.heads),  # type: ignore[arg-type]
            scale=float(attention.scale),  # type: ignore[arg-type]
            module_class=type(attention).__name__,
        )


def _cross_attentions(unet: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """(path, attention, enclosing Transformer2DModel) of every cross-attention ``attn2``."""
    modules = dict(unet.named_modules())
    for path, module in modules.items():
        parent, _, rest = path.rpartition(".transformer_blocks.")
        if parent and rest.endswith(".attn2") and getattr(module, "is_cross_attention", False):
            yield path, module, modules[parent]
