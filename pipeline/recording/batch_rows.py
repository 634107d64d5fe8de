"""A layer's query and key, split by guidance role, sample and head, with the geometry that was recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from i2am.pipeline.adapters.contract import Adapter, AnySite, Site, TokenLayout
from i2am.pipeline.taps.projections import QueryKey
from i2am.storage.errors import CaptureError
from i2am.storage.format.layer_spec import TEXT, DType, LayerSpec, Representation
from i2am.storage.format.tile import Tile
from i2am.storage.index_selection import Indices, select_indices


@dataclass(frozen=True, slots=True)
class SampleAttention:
    """One layer of one sample in one role: [head, token, dim] and lse [head, gen], on the device.

    ``row`` and ``heads`` say where it stands in the model's batch.
    """

    spec: LayerSpec
    sample: int
    row: int
    heads: tuple[int, ...]
    query: torch.Tensor
    key: torch.Tensor
    lse: torch.Tensor | None = None

    @property
    def arrays(self) -> dict[str, torch.Tensor]:
        """What there is to store, by the store's names; the query may be another layer's."""
        found = {"query": self.query, "key": self.key, "lse": self.lse}
        if self.spec.query_of:
            del found["query"]
        return {kind: tensor for kind, tensor in found.items() if tensor is not None}


class BatchSplitter:
    """Takes the rows of the kept roles, and the kept heads, out of a batch.

    Rows come role by role, samples in order inside each: [uncond a, uncond b, cond a, cond b].
    """

    def __init__(
        self,
        pipe: Any,
        adapter: Adapter,
        roles: Sequence[str],
        heads: Indices,
        representation: Representation,
    ) -> None:
        self._pipe, self._adapter = pipe, adapter
        self.roles, self._heads, self._representation = tuple(roles), heads, representation

    def rows(self, layer: QueryKey, samples: int, known: tuple[str, ...] | None) -> tuple[str, ...]:
        """Roles of the row blocks of a call; ``known`` where the call itself tells them."""
        count = layer.query.shape[0]
        if count % samples or layer.key.shape[0] != count:
            raise CaptureError(
                f"layer {layer.site.name!r}: rows of a denoiser call",
                expected=f"a multiple of {samples} declared samples, equal for query and key",
                got=f"{count} and {layer.key.shape[0]}",
                remedy="declare every image of the call: cap.samples([...]) takes one id for each",
            )
        if known is None:
            return self._adapter.roles(self._pipe, count // samples)
        if len(known) * samples != count:
            raise CaptureError(
                f"layer {layer.site.name!r}: rows of a denoiser call",
                expected=f"{len(known)} for each of {samples} samples: {', '.join(known)}",
                got=str(count),
                remedy="declare every image of the call, or give its layout: guidance=[[...]]",
            )
        return known

    def check_guidance(self, rows: tuple[str, ...], samples: int, latents: torch.Tensor | None) -> None:
        """Witness that row blocks of several roles are guidance: the same latents stand in each of them.

        Several images of one id would have latents of their own.
        """
        declared = self._adapter.guidance_is_on(self._pipe)
        blocks = None
        if latents is not None and latents.shape[0] == len(rows) * samples:
            blocks = latents[:, :1].reshape(len(rows), -1)
        equal = blocks is None or bool((blocks == blocks[0]).all())
        if declared is False or not equal:
            raise CaptureError(
                "rows of a denoiser call",
                expected=f"{samples}, one for each declared sample, since there is no guidance"
                if declared is False
                else f"the same latents in the blocks of rows {', '.join(rows)}",
                got=f"{len(rows) * samples}" if declared is False else "latents that differ",
                remedy="declare every image of the call: cap.samples([...]) takes one id for each; or name "
                "the rows: guidance=[[...]]",
            )

    def split(
        self, layer: QueryKey, rows: tuple[str, ...], samples: int, tile: Tile | None
    ) -> Iterator[SampleAttention]:
        """The kept roles, samples and heads of one layer's call, whose row blocks have the roles ``rows``."""
        heads = layer.query.shape[2]
        kept = sorted(select_indices("head", self._heads, heads))
        for role in self.roles:
            if role not in rows:
                continue
            if layer.roles and role not in layer.roles:
                raise CaptureError(
                    f"layer {layer.site.name!r}: rows of role {role!r}",
                    expected=f"rows whose reference tokens' places are known: {', '.join(layer.roles)}",
                    got="rows that have them elsewhere, or have none",
                    remedy="leave the role out with roles=",
                )
            spec = self._spec(layer, role, len(kept), tile)
            first = rows.index(role) * samples
            for sample in range(samples):
                row = first + sample
                query, key = layer.query[row].transpose(0, 1), layer.key[row].transpose(0, 1)
                lse = None if layer.lse is None else layer.lse[row]
                if len(kept) < heads:
                    query, key = query[kept], key[kept]
                    lse = None if lse is None else lse[kept]
                yield SampleAttention(spec, sample, row, tuple(kept), query, key, lse)

    def _spec(self, layer: QueryKey, role: str, heads: int, tile: Tile | None) -> LayerSpec:
        site, grid = layer.site, layer.grid
        tokens, dtype = layer.query.shape[1], str(layer.query.dtype).removeprefix("torch.")
        if grid[0] * grid[1] != tokens or dtype not in get_args(DType):
            raise CaptureError(
                f"layer {site.name!r}: query",
                expected=f"[row, {grid[0]}x{grid[1]} tokens, head, dim], " + ", ".join(get_args(DType)),
                got=f"{tuple(layer.query.shape)}, {dtype}",
                remedy="use an adapter that knows this layer's geometry",
            )
        layout = self._layout(layer)
        shared = tile is None or self._adapter.shared_reference(self._pipe)
        return LayerSpec(
            name=_name(site.name, layer.part, tile, role),
            heads=heads,
            head_dim=layer.query.shape[3],
            gen_grid=grid,
            ref_grid=layout.grid,
            ref_prefix=layout.prefix,
            representation=self._representation,
            static_key=layer.static_key and self._representation != "scores",
            dtype=dtype,  # type: ignore[arg-type]
            scale=layer.scale,
            lse=layer.lse is not None,
            module_class=site.module_class,
            role=role,
            tile=tile,
            ref_tile=None if shared else tile,
            reference=layer.part or _reference(site),
            query_of=layer.query_of and _name(layer.query_of, "", tile, role),
        )

    def _layout(self, layer: QueryKey) -> TokenLayout:
        site, layout, tokens = layer.site, layer.layout, layer.key.shape[1]
        if layout is None:
            if not isinstance(site, Site):
                raise TypeError("the tap of a joint layer gives its layout")
            layout = (
                TokenLayout((0, 0), tokens)
                if site.text
                else self._adapter.layout(self._pipe, site, tokens, layer.grid)
            )
        if layout.tokens != tokens:
            raise CaptureError(
                f"layer {site.name!r}: reference tokens",
                expected=f"{layout.tokens} ({layout.prefix} without a place, grid {layout.grid})",
                got=str(tokens),
                remedy="check the reference encoder's configuration against the denoiser's input",
            )
        return layout


def _reference(site: AnySite) -> str:
    if isinstance(site, Site) and site.text:
        return TEXT
    return f"reference-{site.reference_index}" if site.reference_index else "reference"


def _name(layer: str, part: str, tile: Tile | None, role: str) -> str:
    """Name in the store: references, tiles and roles other than "cond" are layers of their own."""
    marks = [part, f"tile-{tile.top}-{tile.left}" if tile else "", "" if role == "cond" else role]
    return "@".join([layer, *filter(None, marks)])
