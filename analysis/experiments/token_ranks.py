"""Orders of a reference's tokens by what a run's maps say of them, the most important first.

``g2r``: I²AM's unified map over all generated patches; ``g2r-painted``: over the patches of the mask;
``norm`` and ``norm-painted``: the same, attention times the norm of each token's value; ``daam``: the mean
over the image of each token's DAAM map; ``official``: G2R by the paper's code; ``layers``: G2R of each layer,
of each head, and of each head of each layer; ``random``: several draws; ``lowest``: the reverse of ``g2r``.
Tokens without a place have no order: they are removed together, ``whole``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from i2am.analysis.aggregations.daam import daam_maps
from i2am.analysis.grids.resize import linear
from i2am.analysis.grids.selection import has_reference_map, select
from i2am.analysis.grids.tiled_layers import group_tiles, largest_grid
from i2am.analysis.maps.attribution import attribution_maps
from i2am.storage.errors import InputError, NoAnswer, UnknownName
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.run import Run

Grid = tuple[int, int]
WHOLE = "whole"
"""The only order of a reference without places: all of its tokens at once."""

RANKS = ("g2r", "g2r-painted", "norm", "norm-painted", "daam", "official", "layers", "random", "lowest")
DRAWS = 3

_QUESTIONS: Mapping[str, Mapping[str, Any]] = {
    "g2r": {},
    "g2r-painted": {"at": "mask"},
    "norm": {"method": "norm"},
    "norm-painted": {"method": "norm", "at": "mask"},
    "official": {"protocol": "official"},
    "lowest": {},
}


@dataclass(frozen=True, slots=True)
class Order:
    """Tokens of one sample's reference, row by row, the most important first."""

    rank: str
    tokens: NDArray[np.intp]
    layer: str | None = None  # of "layers": one layer, or all
    head: int | None = None  # and one head, or all
    draw: int | None = None  # of "random"


@dataclass(frozen=True, slots=True)
class TokenRanks:
    """The ranks that a run can answer; `notes` says why others are missing."""

    grid: Grid  # (rows, columns) of the tokens; (1, tokens) of those without a place
    draws: int
    names: tuple[str, ...]
    maps: Mapping[tuple[str, str | None, int | None], Callable[[str], NDArray[np.float64]]]
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def placed(self) -> bool:
        """Whether the tokens have places in the reference."""
        return WHOLE not in self.names

    def orders(self, sample: str) -> list[Order]:
        """Every order of one sample."""
        found = [
            Order(
                rank,
                _descending((-1 if rank == "lowest" else 1) * values(sample), rank, sample),
                layer,
                head,
            )
            for (rank, layer, head), values in self.maps.items()
        ]
        if "random" in self.names:
            seed, tokens = zlib.crc32(sample.encode()), self.grid[0] * self.grid[1]
            found += [
                Order("random", np.random.default_rng([draw, seed]).permutation(tokens), draw=draw)
                for draw in range(self.draws)
            ]
        return found


def has_places(run: Run) -> bool:
    """Whether any tokens that the run's layers attend to have places in a reference."""
    return any(has_reference_map(layer) for layer in select(run, "r2g").layers)


def check_ranks(names: Sequence[str], draws: int) -> None:
    """Refuse ranks that there are not, and a random one without orders."""
    for name in names:
        if name not in RANKS:
            raise UnknownName("rank", name, RANKS)
    if draws < 1:
        raise InputError("draws", expected="at least 1", got=str(draws), remedy="leave the rank random out")


def token_ranks(run: Run, names: Sequence[str] = RANKS, draws: int = DRAWS) -> TokenRanks:
    """Ask the run for the maps of each rank, lazily.

    A rank that this run cannot answer is left out with a note (`InputError`: none is left). Tokens without a
    place, such as a pooled one, have no map and no order: there is `WHOLE` alone.
    """
    check_ranks(names, draws)
    if not has_places(run):
        return _whole(run, names)
    layers = select(run, "g2r").layers
    grid = largest_grid(layers, "ref")
    maps: dict[tuple[str, str | None, int | None], Any] = {}
    notes: dict[str, str] = {}
    for name in dict.fromkeys(names):
        try:
            if name in _QUESTIONS:
                # The official code resizes no map on the reference, so its order is brought to the grid here.
                size = None if name == "official" else grid
                found = attribution_maps(run, "g2r", size=size, **_QUESTIONS[name])
                maps[name, None, None] = _values_of(found, grid)
            elif name == "daam":
                maps[name, None, None] = _values_of(_daam(run, layers))
            elif name == "layers":
                maps |= _by_layer_and_head(run, layers, grid)
        except (NoAnswer, UnknownName) as error:
            notes[name] = str(error)
    if len(notes) == len(set(names)):
        raise InputError("ranks", expected="one that this run has", got="; ".join(notes.values()))
    return TokenRanks(grid, draws, tuple(name for name in names if name not in notes), maps, notes)


def _whole(run: Run, names: Sequence[str]) -> TokenRanks:
    """The order of a reference without places."""
    counts = {layer.ref for layer in select(run, "r2g").layers}
    if len(counts) > 1:
        raise NoAnswer(
            "orders of reference tokens without a place",
            expected="as many in every layer",
            got=", ".join(map(str, sorted(counts))),
            remedy="capture layers of one reference",
        )
    tokens = counts.pop()
    why = "one pooled token" if tokens == 1 else f"{tokens} tokens without a place"
    notes = dict.fromkeys(names, f"the reference is {why}, which is removed as a whole")
    return TokenRanks((1, tokens), 0, (WHOLE,), {(WHOLE, None, None): lambda _: np.zeros(tokens)}, notes)


def _daam(run: Run, layers: Sequence[LayerSpec]) -> xr.DataArray:
    """The mean over the generated image of each reference token's map."""
    grids = {(layer.ref_grid, layer.ref_prefix) for layer in layers}
    if len(grids) > 1:
        raise NoAnswer("daam over layers of different reference grids", expected="one", got=str(len(grids)))
    (rows, columns), prefix = grids.pop()
    maps = daam_maps(run, range(prefix, prefix + rows * columns), list(group_tiles(layers)))
    return maps.mean(("y", "x"))


def _by_layer_and_head(run: Run, layers: Sequence[LayerSpec], grid: Grid) -> dict[Any, Any]:
    """One map of each layer, of each head, and of each head of each layer."""
    names = list(group_tiles(layers))
    by_layer = attribution_maps(run, "g2r", "layer", layers=names, size=grid)
    found: dict[Any, Any] = {("layers", None, None): _values_of(by_layer.mean("layer"))}
    found |= {("layers", name, None): _values_of(by_layer.sel(layer=name)) for name in names}
    same_heads = len({layer.heads for layer in layers}) == 1
    for chosen in (*([names] if same_heads else ()), *([name] for name in names)):
        maps = attribution_maps(run, "g2r", "head", layers=chosen, size=grid)
        layer = None if chosen is names else chosen[0]
        found |= {("layers", layer, int(n)): _values_of(maps.sel(head=n)) for n in maps["head"].values}
    return found


def _values_of(maps: xr.DataArray, grid: Grid | None = None) -> Callable[[str], NDArray[np.float64]]:
    """Numbers of a sample's tokens, row by row; ``grid``: maps (y, x) are resized to it."""

    def values(sample: str) -> NDArray[np.float64]:
        own = np.asarray(maps.sel(sample=sample), dtype=np.float64)
        return (own if grid is None else linear(own, grid)).reshape(-1)

    return values


def _descending(values: NDArray[np.float64], rank: str, sample: str) -> NDArray[np.intp]:
    if not np.isfinite(values).all():
        raise NoAnswer(
            f"rank {rank!r} of sample {sample!r}",
            expected="a finite map",
            got="one of an empty region",
            remedy="leave the rank out with --rank, or the sample with --sample",
        )
    return np.argsort(-values, kind="stable")
