"""What changes during a generation: an end before the last step, guidance, a static key, geometry."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from i2am.pipeline.recording.batch_rows import SampleAttention
from i2am.pipeline.taps.host_copies import Array
from i2am.storage.errors import CaptureError
from i2am.storage.format.layer_spec import LayerSpec


def check_steps(whole: int, announced: int, kept: Sequence[int], interrupted: bool) -> dict[str, Any]:
    """Check that the ``whole`` steps that were made hold all there is to store; return what to note.

    They may be fewer than announced if the pipeline says that it was interrupted.
    """
    if 0 < whole == announced:
        return {}
    if interrupted and kept and kept[-1] < whole:
        return {"interrupted": {"steps": whole, "of": announced}}
    remedy = (
        f"keep only steps that ran, in a run of their own: capture(..., steps=slice({whole}))"
        if interrupted and whole
        else "run the whole pipeline call inside the context, and give timesteps=[...] where it makes fewer "
        "calls than its scheduler announces"
        if whole
        else "run the pipeline inside the context, image-to-image with a strength of at least one step; give "
        "an exported or traced model as it was before"
    )
    raise CaptureError(
        "denoiser calls in the sample context",
        expected=f"{announced} steps" if announced else "at least 1 step",
        got=f"{whole} before an interrupt" if interrupted else str(whole),
        remedy=remedy,
    )


def check_roles(kept: Collection[str], roles: Mapping[int, Collection[str]]) -> dict[str, Any]:
    """Check that the ``kept`` roles were there at every stored step; return what to note.

    ``roles`` are those of each step; guidance may have ended or begun midway.
    """
    for role in kept:
        if missing := [step for step, found in roles.items() if role not in found]:
            more = ", ..." if len(missing) > 5 else ""
            raise CaptureError(
                f"rows of role {role!r}",
                expected="some at every kept step",
                got=f"none at step {', '.join(map(str, missing[:5]))}{more}: guidance ended or began midway",
                remedy="leave the role out with roles=, or keep the steps that have it with steps=",
            )
    most = max(map(len, roles.values()))
    guided = [step for step, found in roles.items() if len(found) == most]
    return {} if len(guided) == len(roles) else {"guided_steps": guided}


def geometry_changes(first: LayerSpec, now: LayerSpec, step: int) -> CaptureError:
    """The error of a layer that has another geometry than at the first kept step."""
    changed = [spec.name for spec in fields(first) if getattr(first, spec.name) != getattr(now, spec.name)]
    return CaptureError(
        f"layer {first.name!r}, step {step}",
        expected="the geometry of the first step: "
        + ", ".join(f"{name} {getattr(first, name)}" for name in changed),
        got=", ".join(f"{getattr(now, name)}" for name in changed),
        remedy=f"keep the steps before it, in a run of their own: capture(..., steps=slice({step}))",
    )


class StaticKeys:
    """The first key of each layer and sample whose key does not change over time."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, str], tuple[int, Array]] = {}

    def keep(self, part: SampleAttention, arrived: dict[str, Array]) -> float:
        """Put the first key in the place of one that is only rounded otherwise; return its precision, or 0.

        A product may be rounded otherwise once guidance has ended and the batch has fewer rows.
        """
        if not part.spec.static_key:
            return 0.0
        row, first = self._first.setdefault((part.sample, part.spec.name), (part.row, arrived["key"]))
        if row == part.row:
            return 0.0
        precision = float(torch.finfo(getattr(torch, part.spec.dtype)).eps)
        summed = 16 * float(np.finfo(np.float32).eps * np.abs(first).max())  # products are summed in float32
        now, before = arrived["key"].astype(np.float32), first.astype(np.float32)
        if not np.allclose(now, before, rtol=2 * precision, atol=summed):
            return 0.0
        arrived["key"] = first
        return precision
