"""What most families have in common: subclass it and override what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Site, Spans, TokenLayout
from i2am.pipeline.timesteps import announced
from i2am.storage.errors import CaptureError


class Defaults:
    """A family with one denoiser, one call a step, and guidance as [uncond, cond] in one batch."""

    name = ""
    tiled = False
    part = "unet"
    """Attribute of the pipeline that holds the denoiser."""

    def denoiser(self, pipe: Any) -> nn.Module:
        """The pipeline's UNet, or what ``part`` names."""
        module = getattr(pipe, self.part, None)
        if not isinstance(module, nn.Module):
            raise CaptureError(
                f"adapter {self.name!r}: the pipeline's {self.part}",
                expected="a torch module",
                got=type(module).__name__,
                remedy="name another adapter, or give a pipeline of this family",
            )
        return module

    def companions(self, pipe: Any) -> Sequence[nn.Module]:
        """None."""
        return ()

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """Tokens without a place."""
        return TokenLayout(grid=(0, 0), prefix=tokens)

    def spans(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        """There is no joint attention in this family."""
        raise NotImplementedError(f"adapter {self.name!r} has no joint attention")

    def shared_reference(self, pipe: Any) -> bool:
        """All tiles see the whole reference."""
        return True

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        """One block of rows without guidance; [uncond, cond] with it."""
        return self._known_roles(rows_per_sample, {1: ("cond",), 2: ("uncond", "cond")})

    def calls(self, pipe: Any) -> tuple[str, ...]:
        """One call a step, whatever the guidance."""
        return ()

    def schedule(self, pipe: Any, first: float, tolerance: float) -> list[float]:
        """What the pipeline's scheduler announces."""
        return announced(getattr(pipe, "scheduler", None), first, tolerance)

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        """The argument ``timestep``, as diffusers' models call it."""
        return arguments.get("timestep")

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """Unknown: the configuration says."""
        return {}

    def _known_roles(self, rows: int, known: Mapping[int, tuple[str, ...]]) -> tuple[str, ...]:
        if rows not in known:
            raise CaptureError(
                f"adapter {self.name!r}: rows for one sample in a denoiser call",
                expected=" or ".join(f"{count} ({', '.join(roles)})" for count, roles in known.items()),
                got=str(rows),
                remedy="declare every image of the call: cap.samples([...]) takes one id for each; or name "
                "the rows: guidance=[[...]]",
            )
        return known[rows]

    def _none_found(self, root: nn.Module, wanted: str) -> CaptureError:
        """The error of a model without the layers of this family: what was looked for, what there is."""
        classes = sorted({type(m).__name__ for m in root.modules() if "ttention" in type(m).__name__})
        return CaptureError(
            f"adapter {self.name!r}: no layer to capture",
            expected=wanted,
            got=f"a {type(root).__name__} with {', '.join(classes) or 'no attention'}",
            remedy="name the adapter of this model's family",
        )
