"""Ablation: chosen reference tokens of each sample are removed while a pipeline generates.

Only the conditional rows are changed. Cross-attention: "empty" puts what stands for no reference under
guidance dropout in a token's place, "mean" the mean of the sample's tokens that have a place, before both key
and value are made of it. Joint attention: "latent" and "mean" put zero, or the mean, in place of the
reference's patches in the denoiser's input. "mask" hides the tokens' keys from every attention layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike

from i2am.pipeline.adapters.contract import Adapter, JointSite
from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.compilation import compiled_code_left_out
from i2am.pipeline.interventions.call_roles import CallRoles
from i2am.pipeline.interventions.cross_removal import CrossRemoval
from i2am.pipeline.interventions.joint_removal import JointRemoval
from i2am.pipeline.interventions.removal import Mode
from i2am.pipeline.recording.layer_selection import Layers, select_layers
from i2am.storage.errors import InputError


@contextmanager
def ablation(
    pipe: Any,
    removed: ArrayLike,
    mode: Mode = "empty",
    *,
    layers: Layers = None,
    adapter: str | Adapter | None = None,
    guidance: Sequence[Sequence[str]] | None = None,
    timesteps: Sequence[float] | None = None,
    reference: int = 0,
) -> Iterator[None]:
    """Remove reference tokens of each sample of the one pipeline call inside the context.

    ``removed`` is True where a token goes: [sample, row, column] over the reference, a cell of a layer's grid
    being removed where at least half of it is, and tokens without a place stay; or [sample, token], all of
    them, in the model's order. ``guidance`` and ``timesteps`` are as for a capture; ``reference`` is which of
    several references is meant.
    """
    if mode not in get_args(Mode):
        raise InputError("mode", expected=" or ".join(get_args(Mode)), got=repr(mode))
    gone = np.asarray(removed)
    if gone.dtype != np.bool_ or gone.ndim not in (2, 3) or not gone.size:
        expected = "bool [sample, row, column] or [sample, token]"
        raise InputError(
            "removed", expected=expected, got=f"{gone.dtype} {gone.shape}", remedy="give a boolean array"
        )
    family = find_adapter(pipe, adapter)
    if not family.removable:
        raise InputError(
            f"ablation with adapter {family.name!r}",
            expected="reference tokens in the denoiser's calls of the steps",
            got="keys that were kept before",
            remedy="change the reference image itself",
        )
    sites = select_layers(layers, family.sites(pipe))
    joint = any(isinstance(site, JointSite) for site in sites)
    if mode == ("empty" if joint else "latent"):
        raise InputError(
            f"mode of adapter {family.name!r}",
            expected="latent, mean or mask, for joint attention" if joint else "empty, mean or mask",
            got=mode,
            remedy="choose one of these",
        )
    roles = CallRoles(pipe, family, len(gone), guidance, timesteps)
    kind = JointRemoval if joint else CrossRemoval
    found = kind(pipe, family, sites, torch.from_numpy(gone.copy()), mode, roles, reference)
    with ExitStack() as hooks:
        hooks.enter_context(compiled_code_left_out())
        hooks.enter_context(roles.followed())
        hooks.enter_context(found.attached())
        yield
        found.check_done()


def default_mode(pipe: Any, adapter: str | Adapter | None = None) -> Mode:
    """The mode "latent" for joint attention, "empty" for all others."""
    sites = find_adapter(pipe, adapter).sites(pipe)
    return "latent" if any(isinstance(site, JointSite) for site in sites) else "empty"
