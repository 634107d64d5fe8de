"""What the adapters of UNets share: finding attention modules by path, and describing their projections."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from i2am.pipeline.adapters.contract import Site
from i2am.storage.errors import CaptureError


def attentions(root: nn.Module, path: str) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Attention modules below a module of feature maps.

    Parameters
    ----------
    root
        A UNet, a ControlNet.
    path
        Regular expression for the paths of the attentions; up to ``.transformer_blocks.`` a path names the
        module that turns a feature map into tokens.

    Yields
    ------
    tuple
        Path, attention, and the module whose input is the feature map.
    """
    modules = dict(root.named_modules())
    for name, module in modules.items():
        if re.fullmatch(path, name):
            yield name, module, modules[name.rpartition(".transformer_blocks.")[0]]


def projection_site(
    name: str,
    attention: nn.Module,
    grid: nn.Module,
    *,
    static_key: bool = True,
    key: nn.Module | None = None,
    source: int = 0,
) -> Site:
    """A site on ``to_q`` and ``to_k`` (or ``key``) of an attention of diffusers or of CompVis' code.

    Raises
    ------
    CaptureError
        If its scores are not made from these projections alone.
    """
    changed = [norm for norm in ("norm_q", "norm_k") if getattr(attention, norm, None) is not None]
    if changed or getattr(attention, "fused_projections", False):
        raise CaptureError(
            f"layer {name!r}: its scores",
            expected="made from the outputs of to_q and to_k alone",
            got="normalised by " + " and ".join(changed) if changed else "fused projections",
            remedy="call pipe.unfuse_qkv_projections(), or use an adapter that taps the attention call",
        )
    query = attention.get_submodule("to_q")
    heads = int(attention.heads)  # type: ignore[arg-type]
    scale = getattr(attention, "scale", None)
    if scale is None:  # CompVis' memory-efficient attention leaves the scale to its kernel
        scale = int(attention.dim_head) ** -0.5  # type: ignore[arg-type]
    return Site(
        name=name,
        query=query,
        key=attention.get_submodule("to_k") if key is None else key,
        grid=grid,
        heads=heads,
        scale=float(scale),
        module_class=type(attention).__name__,
        static_key=static_key,
        source=source,
    )


def has_path(root: object, path: str) -> bool:
    """Whether a model has a module whose path matches the regular expression ``path``."""
    return isinstance(root, nn.Module) and any(re.fullmatch(path, name) for name, _ in root.named_modules())
