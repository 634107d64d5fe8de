"""What the adapters of UNets share: finding attention modules by path, and describing their projections."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Adapter, JointSite, Site
from i2am.pipeline.compilation import named_modules, original
from i2am.storage.errors import CaptureError

ATTN2 = r".+\.transformer_blocks\.\d+\.attn2"
"""Paths of cross-attention in diffusers' UNets."""
_BLOCKS = ("down_blocks", "mid_block", "up_blocks")
ATTN1 = rf"({'|'.join(_BLOCKS)})\..+\.transformer_blocks\.\d+\.attn1"
"""Paths of self-attention."""


class UNetAdapter(Adapter):
    """A diffusers UNet that attends to the reference in every module whose path matches ``paths``."""

    paths = ATTN2
    wanted = "modules named '*.transformer_blocks.*.attn2' with cross-attention"
    """What ``paths`` looks for, in the words of an error message."""
    static_key = True
    cross_attention_only = True
    """False where diffusers does not mark the family's own modules as cross-attention."""

    def sites(self, pipe: Any) -> Sequence[Site]:
        unet = self.denoiser(pipe)
        found = [
            projection_site(f"unet.{path}", attention, grid, static_key=self.static_key)
            for path, attention, grid in attentions(unet, self.paths)
            if not self.cross_attention_only or getattr(attention, "is_cross_attention", False)
        ]
        if not found:
            raise self._no_layer(unet, self.wanted)
        return found

    def text_sites(self, pipe: Any) -> Sequence[Site]:
        taken = {site.name for site in self.sites(pipe)}
        return [site for site in text_sites(self.denoiser(pipe)) if site.name not in taken]


def text_sites(unet: nn.Module, gain: Callable[[], float | None] | None = None) -> list[Site]:
    """Cross-attention to the prompt."""
    return [
        projection_site(f"unet.{path}", attention, grid, text=True, gain=gain)
        for path, attention, grid in attentions(unet, ATTN2)
        if getattr(attention, "is_cross_attention", False)
    ]


def attentions(root: nn.Module, paths: str) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Path, attention, and the module whose input is the feature map.

    The latter's path is that of the attention up to ``.transformer_blocks.``.
    """
    modules = dict(named_modules(root))
    for name, module in modules.items():
        if re.fullmatch(paths, name):
            yield name, module, modules[name.rpartition(".transformer_blocks.")[0]]


def projection_site(
    name: str,
    attention: nn.Module,
    grid: nn.Module,
    *,
    static_key: bool = True,
    key: nn.Module | None = None,
    value: nn.Module | None = None,
    reference_index: int = 0,
    text: bool = False,
    gain: Callable[[], float | None] | None = None,
) -> Site:
    """A site on ``to_q`` and ``to_k`` (or ``key``) of an attention of diffusers or of CompVis' code."""
    changed = [norm for norm in ("norm_q", "norm_k") if getattr(attention, norm, None) is not None]
    if changed or getattr(attention, "fused_projections", False):
        raise CaptureError(
            f"layer {name!r}: its scores",
            expected="made from the outputs of to_q and to_k alone",
            got="normalised by " + " and ".join(changed) if changed else "fused projections",
            remedy="call pipe.unfuse_qkv_projections(), or use an adapter that taps the attention call",
        )
    scale = getattr(attention, "scale", None)
    if scale is None:  # CompVis' memory-efficient attention leaves the scale to its kernel
        scale = int(attention.dim_head) ** -0.5  # type: ignore[arg-type]
    return Site(
        name=name,
        attention=attention,
        query=attention.get_submodule("to_q"),
        key=attention.get_submodule("to_k") if key is None else key,
        grid=grid,
        heads=int(attention.heads),  # type: ignore[arg-type]
        scale=float(scale),
        module_class=type(attention).__name__,
        static_key=static_key,
        reference_index=reference_index,
        text=text,
        value=_module(attention, "to_v") if value is None else value,
        output=_output(attention),
        stream=_stream(grid, attention),
        gain=gain,
    )


def self_attentions(unet: nn.Module, part: str = "unet") -> list[JointSite]:
    """Self-attention that further tokens may have joined, in the order of its calls: down, middle, up."""
    found = [
        JointSite(f"{part}.{path}", original(attention), _output(attention), _stream(grid, attention), True)
        for path, attention, grid in attentions(unet, ATTN1)
    ]
    return sorted(found, key=lambda site: _BLOCKS.index(site.name.split(".")[1]))


def heads_of(site: JointSite) -> int:
    """Heads of a self-attention, whose site may be the block around it."""
    attention: Any = site.attention
    return int(attention.heads if hasattr(attention, "heads") else attention.attn1.heads)


def level_grid(unet: Any, site: JointSite, latents: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) at a site: each block but the last halves the latents on the way down."""
    kind, number = site.name.split(".")[1:3]
    level = len(unet.down_blocks) - 1
    if kind != "mid_block":
        level = int(number) if kind == "down_blocks" else level - int(number)
    rows, columns = (-(-side // 2**level) for side in latents)
    return rows, columns


def _output(attention: nn.Module) -> nn.Module | None:
    rescaled = getattr(attention, "rescale_output_factor", 1) != 1
    return None if rescaled else _module(attention, "to_out.0")


def _module(root: nn.Module, path: str) -> nn.Module | None:
    return dict(root.named_modules()).get(path)


def _stream(grid: nn.Module, attention: nn.Module) -> nn.Module | None:
    """The norm before an attention, whose input is what its output is added to: ``norm2`` of ``attn2``."""
    modules = dict(named_modules(grid))
    path = next((path for path, module in modules.items() if original(module) is attention), "")
    block, _, number = path.rpartition("attn")
    return modules.get(f"{block}norm{number}")


def has_path(root: object, paths: str) -> bool:
    """Whether a model has a module whose path matches the regular expression ``paths``."""
    return isinstance(root, nn.Module) and any(re.fullmatch(paths, name) for name, _ in named_modules(root))


def edit_inputs(pipe: Any) -> dict[str, str]:
    """What the image-to-image and inpainting pipelines of diffusers take besides a prompt."""
    name, found = type(pipe).__name__, {}
    if any(kind in name for kind in ("Pix2Pix", "Img2Img", "Inpaint")):
        found["image"] = "source"
    if "Inpaint" in name:
        found["mask_image"] = "mask"
    return found


def controlnet_of(pipe: Any) -> tuple[nn.Module, ...]:
    """The pipeline's ControlNet, if it has one."""
    controlnet = getattr(pipe, "controlnet", None)
    return (controlnet,) if isinstance(controlnet, nn.Module) else ()
