"""Value norms and contributions of one generation: what is measured of which layer, and what is lacking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from i2am.pipeline.recording.witness import Part
from i2am.pipeline.taps.value_flow import ValueFlow
from i2am.storage.format.layer_spec import OPTIONAL, LayerSpec

_UNSEEN = "no value or output projection was seen at work"


class Norms:
    """Follows a recording: ``expect`` the rows of a layer, ``measure`` them, and hold to what the run has."""

    def __init__(self) -> None:
        self.stored: Mapping[str, LayerSpec] = {}
        """The layers of the run, once it is open."""
        self._parts: dict[str, Sequence[Part]] = {}  # of the layers that were seen in the current call
        self._measured: dict[str, set[str]] = {}  # layer of the store to what was measured of it
        self._once: set[tuple[int, str]] = set()  # samples and layers whose static values are known
        self._lacking: dict[str, str] = {}

    def begin_call(self) -> None:
        self._parts.clear()

    def expect(self, layer: str, parts: Sequence[Part]) -> None:
        """Rows of a layer of the model are about to be stored."""
        self._parts[layer] = parts

    def lack(self, layer: str, why: str) -> None:
        """Something cannot be measured of a layer of the model."""
        self._lacking.setdefault(layer, why)

    def measure(
        self, flow: ValueFlow, specs: Mapping[str, LayerSpec]
    ) -> Iterator[tuple[Part, str, torch.Tensor]]:
        """Each part of a layer, what is measured of it, by the store's name, and the numbers."""
        layer = flow.site.name + flow.part
        for part in self._parts.pop(layer, ()):
            spec = specs[part.name]
            if spec.ref != flow.value.shape[1]:
                self.lack(flow.site.name, "it has another number of values than of keys")
                return
            if (part.sample, part.name) not in self._once:
                if spec.static_key:
                    self._once.add((part.sample, part.name))
                yield (
                    part,
                    "value_norm",
                    self._noted(part, "value_norm", flow.value_norm(part.row, part.heads)),
                )
            if (added := flow.contribution(part.row)) is not None:
                yield part, "contribution", self._noted(part, "contribution", added)

    def _noted(self, part: Part, kind: str, tensor: torch.Tensor) -> torch.Tensor:
        self._measured.setdefault(part.name, set()).add(kind)
        return tensor

    def completed(self, spec: LayerSpec) -> LayerSpec:
        """A layer with what was measured of it at the first kept step."""
        kinds = self._measured.get(spec.name, set())
        return replace(spec, value_norm="value_norm" in kinds, contribution="contribution" in kinds)

    def declared(self, layer: str, arrays: dict[str, Any]) -> dict[str, Any]:
        """The arrays that the run has a place for: it may have been begun without norms."""
        spec = self.stored[layer]
        left_out = {kind for kind in OPTIONAL if not getattr(spec, kind)}
        if spec.query_of:
            left_out.add("query")
        return {kind: array for kind, array in arrays.items() if kind not in left_out}

    def notes(self) -> dict[str, Any]:
        """For the commit record: layers without norms, and why."""
        found = {}
        for name, spec in self.stored.items():
            if not (spec.value_norm and spec.contribution):
                why = [self._lacking[layer] for layer in self._lacking if f"{name}@".startswith(f"{layer}@")]
                seen = "the run was begun without them" if self._measured.get(name) else _UNSEEN
                found[name] = why[0] if why else seen
        return {"without_norms": found} if found else {}
