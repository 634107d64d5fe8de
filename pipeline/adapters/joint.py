"""What the adapters of joint-attention transformers share: their layers, roles and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import Adapter, JointSite, Spans
from i2am.pipeline.compilation import named_modules, original
from i2am.storage.errors import CaptureError


class JointAdapter(Adapter):
    """A transformer whose blocks attend over text, generated and reference tokens at once."""

    part = "transformer"
    blocks: tuple[str, ...] = ("transformer_blocks",)
    """Attributes of the transformer that hold its blocks, in order."""
    attention = "attn"
    """Attribute of a block that holds its joint attention."""
    pipelines: tuple[str, ...] = ()
    """What the names of the family's pipeline classes begin with."""
    lists = False
    """As `takes_lists`."""

    def matches(self, pipe: Any) -> bool:
        return any(parent.__name__.startswith(self.pipelines) for parent in type(pipe).__mro__)

    def sites(self, pipe: Any) -> Sequence[JointSite]:
        transformer = self.denoiser(pipe)
        found = [
            self._site(f"{self.part}.{path}.{self.attention}", block, original(attention))
            for path, block in named_modules(transformer)
            if path.rpartition(".")[0] in self.blocks
            and isinstance(attention := getattr(block, self.attention, None), nn.Module)
        ]
        if not found:
            layers = " or ".join(f"'{name}.*.{self.attention}'" for name in self.blocks)
            raise self._no_layer(transformer, layers)
        return found

    def _site(self, name: str, block: nn.Module, attention: nn.Module) -> JointSite:
        return JointSite(name, attention, *output_and_stream(block, attention))

    def spans(
        self, pipe: Any, arguments: Mapping[str, Any], sites: Sequence[JointSite]
    ) -> Mapping[str, Spans] | None:
        return dict.fromkeys((site.name for site in sites), self.sequence(pipe, arguments))

    def sequence(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        """Where tokens stand in the call of every block alike."""
        raise NotImplementedError

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        """One block of rows: guidance, if on, makes a call of its own."""
        return self._known_roles(rows_per_sample, {1: ("cond",)})

    def calls(self, pipe: Any) -> tuple[str, ...]:
        return ("cond", "uncond")

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        """These models are called with a thousandth of the scheduler's timestep."""
        return arguments["timestep"] * 1000

    def takes_lists(self, pipe: Any) -> bool:
        return self.lists

    def inputs(self, pipe: Any) -> Mapping[str, str | Sequence[str]]:
        return {"image": "source", "prompt": "prompt"}

    def config(self, pipe: Any) -> Any:
        """The transformer's own configuration."""
        return original(self.denoiser(pipe)).config

    def _no_reference(self, expected: str, got: str, remedy: str) -> CaptureError:
        return CaptureError(
            f"adapter {self.name!r}: reference tokens of the joint sequence",
            expected=expected,
            got=got,
            remedy=remedy,
        )


class GuidedInOneCall(JointAdapter):
    """Guidance, if on, doubles the rows of a call; the model is called with the scheduler's own timestep."""

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        return self._known_roles(rows_per_sample, {1: ("cond",), 2: ("uncond", "cond")})

    def calls(self, pipe: Any) -> tuple[str, ...]:
        return ()

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        return arguments["timestep"]


_OUTPUTS = ("to_out", "img_attn_proj")
_NORMS = ("norm1", "img_norm1", "norm", "input_layernorm", "attention_norm1")


def output_and_stream(block: nn.Module, attention: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """What takes the mixed values of image tokens, and the norm that their stream goes through."""
    outputs = (*(getattr(attention, name, None) for name in _OUTPUTS), getattr(block, "proj_out", None))
    output = next((module for module in outputs if isinstance(module, nn.Module)), None)
    if isinstance(output, nn.ModuleList | nn.Sequential):
        output = output[0]
    norms = (getattr(block, name, None) for name in _NORMS)
    return output, next((norm for norm in norms if isinstance(norm, nn.Module)), None)


def grid_of(ids: torch.Tensor) -> tuple[int, int] | None:
    """(rows, columns) of tokens with the ids [row, column]; None if they fill no rectangle."""
    if ids.numel() == 0:
        return None
    places = ids.float()
    rows, columns = (int(n) for n in (places.amax(0) - places.amin(0) + 1).tolist())
    return (rows, columns) if rows * columns == len(ids) else None
