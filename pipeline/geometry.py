"""From a projection's rows to samples, guidance roles and heads, with the geometry that was recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch

from pipeline.adapters.contract import Adapter, Site
from pipeline.selection import Numbers, select_numbers
from storage.errors import CaptureError, UnknownName
from storage.spec import DType, LayerSpec, Representation


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer of one sample in one role: query [head, gen, dim] and key [head, ref, dim] on the device."""

    spec: LayerSpec
    sample: int
    query: torch.Tensor
    key: torch.Tensor


class Split:
    """Splits projections [row, token, heads * head dim] by role, sample and head.

    Rows come role by role, samples in order inside each: [uncond a, uncond b, cond a, cond b].

    Parameters
    ----------
    pipe, adapter
        The pipeline, and what is known of its family.
    roles
        Guidance roles to keep.
    heads
        Heads to keep.
    representation
        Passed on to every layer's specification.

    Attributes
    ----------
    rows
        Roles of the row blocks of the last call that was split.
    """

    def __init__(
        self,
        pipe: Any,
        adapter: Adapter,
        roles: Sequence[str],
        heads: Numbers,
        representation: Representation,
    ) -> None:
        self._pipe, self._adapter = pipe, adapter
        self._roles, self._heads, self._representation = tuple(roles), heads, representation
        self.rows: tuple[str, ...] = ()

    def __call__(
        self, site: Site, query: torch.Tensor, key: torch.Tensor, grid: tuple[int, int], samples: int
    ) -> Iterator[Attention]:
        """The kept parts of one layer's projections.

        Raises
        ------
        CaptureError
            If rows, tokens or dtype are not what the recorded geometry says.
        UnknownName
            If a role to keep is not in this call.
        """
        count, _, width = query.shape
        if count % samples or key.shape[0] != count:
            raise CaptureError(
                f"layer {site.name!r}: rows of a denoiser call",
                expected=f"a multiple of {samples} declared samples, equal for query and key",
                got=f"{count} and {key.shape[0]}",
                remedy="declare every image of the call: cap.samples([...]) takes one id for each",
            )
        self.rows = self._adapter.roles(self._pipe, count // samples)
        spec = self._spec(site, query, key, grid)
        kept = select_numbers("head", self._heads, site.heads)
        for role in self._roles:
            if role not in self.rows:
                raise UnknownName("role", role, self.rows)
            named = spec if role == "cond" else _renamed(spec, role)
            first = self.rows.index(role) * samples
            for sample in range(samples):
                q, k = (
                    x[first + sample].view(x.shape[1], site.heads, width // site.heads).transpose(0, 1)
                    for x in (query, key)
                )
                yield Attention(named, sample, *((q, k) if len(kept) == site.heads else (q[kept], k[kept])))

    def _spec(self, site: Site, query: torch.Tensor, key: torch.Tensor, grid: tuple[int, int]) -> LayerSpec:
        tokens, width = query.shape[1:]
        dtype = str(query.dtype).removeprefix("torch.")
        if grid[0] * grid[1] != tokens or width % site.heads or dtype not in get_args(DType):
            raise CaptureError(
                f"layer {site.name!r}: query",
                expected=f"[row, {grid[0]}x{grid[1]} tokens, a multiple of {site.heads} heads], "
                + ", ".join(get_args(DType)),
                got=f"{tuple(query.shape)}, {dtype}",
                remedy="use an adapter that knows this layer's geometry",
            )
        layout = self._adapter.layout(self._pipe, key.shape[1])
        return LayerSpec(
            name=site.name,
            heads=len(select_numbers("head", self._heads, site.heads)),
            head_dim=width // site.heads,
            gen_grid=grid,
            ref_grid=layout.grid,
            ref_prefix=layout.prefix,
            representation=self._representation,
            static_key=site.static_key,
            dtype=dtype,  # type: ignore[arg-type]
            scale=site.scale,
            module_class=site.module_class,
        )


def _renamed(spec: LayerSpec, role: str) -> LayerSpec:
    """``spec`` for another role than the conditional one: a layer of its own in the store."""
    return replace(spec, name=f"{spec.name}@{role}", role=role)
