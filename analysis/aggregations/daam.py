"""DAAM's maps, the baseline of the paper's comparison: one map for each reference token, or their average.

Source: Tang et al. 2023, "What the DAAM". The softmax runs over the reference tokens, ``P(r | g)``; a token's
map is averaged over steps and heads, resized bicubic, clamped at 0, averaged over layers, and multiplied by
the number of tokens, so 1 is uniform. It is 1 everywhere over all tokens, and for a single pooled token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from i2am.analysis.aggregations.aggregate import aggregate
from i2am.analysis.grids.resize import Grid
from i2am.analysis.reduction.aggregation import Aggregation, State, ratio
from i2am.analysis.reduction.attention import Attention
from i2am.storage.errors import InputError, NoAnswer
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.index_selection import Indices
from i2am.storage.reading.open import Place, open_any
from i2am.storage.reading.run_collection import AnyRun, members_of


def _chunk(tokens: Sequence[int], attention: Attention) -> State:
    """(sum over steps and heads of the densities (gen, token), number of planes (gen, 1))."""
    p = attention.probabilities("g2r")[..., list(tokens)]
    total = p.sum(axis=(0, 1), dtype=np.float64) * attention.layer.ref
    return total, np.full((p.shape[2], 1), float(p.shape[0] * p.shape[1]))


def _finalize(state: State, layer: LayerSpec) -> NDArray[np.float64]:
    return ratio(state, layer).T


def daam_maps(
    run: Place | Sequence[Place],
    tokens: Sequence[int] | int,
    layers: Sequence[str] | str | None = None,
    steps: Indices | None = None,
    heads: Indices | None = None,
    samples: Sequence[str] | str | None = None,
    size: Grid | None = None,
    *,
    average: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """DAAM's maps of chosen reference tokens, lazily.

    Parameters
    ----------
    run
        An open run, its path or URL, or several as one.
    tokens
        Indices over all reference tokens, 0-based; those without a place (class, pooled, text) come first.
    layers, steps, heads, samples
        What to average over; layers of a single token are left out where others have more.
    size
        (rows, columns); None for the largest grid.
    average
        One map, the mean over the tokens.
    storage_options
        Options, where the run is a URL.

    Returns
    -------
    xarray.DataArray
        (sample, [token], y, x) densities, at least 0, 1 for uniform attention; the attribute `constant` says
        that all layers have a single token, so that the map is constant.

    Raises
    ------
    InputError, UnknownName, EmptyRun, NoAnswer
        For tokens, names and indices that do not exist, in any layer.
    """
    wanted = _checked(tokens)
    opened = open_any(run, storage_options)
    found = aggregate(
        opened,
        _declared(wanted),
        layers,
        steps,
        heads,
        samples,
        size,
        resize="bicubic",
        storage_options=storage_options,
    )
    _check_layers(opened, found.attrs["layers"], max(wanted))
    maps = found.clip(min=0).mean("layer").astype(np.float32)
    constant = int(all(opened.layers[name].ref == 1 for name in found.attrs["layers"]))
    attrs = found.attrs | {"direction": "r2g", "method": "daam", "constant": constant}
    return (maps.mean("token") if average else maps).assign_attrs(attrs)


def _declared(tokens: tuple[int, ...]) -> Aggregation:
    return Aggregation(
        "daam",
        partial(_chunk, tokens),
        keep=("gen",),
        finalize=_finalize,
        dims=("token", "gen"),
        labels={"token": [int(token) for token in tokens]},
        rows=True,
        units="density (1 = uniform attention)",
        title="DAAM",
    )


def _checked(tokens: Sequence[int] | int) -> tuple[int, ...]:
    wanted = tuple(dict.fromkeys([tokens] if isinstance(tokens, int) else tokens))
    if not wanted or np.asarray(wanted).dtype.kind not in "iu" or min(wanted) < 0:
        raise InputError("tokens", expected="indices of at least 0", got=repr(tokens))
    return wanted


def _check_layers(run: AnyRun, names: Sequence[str], highest: int) -> None:
    for name in names:
        count = min(member.layers[name].ref for member in members_of(run))
        if highest >= count:
            raise NoAnswer(
                f"token {highest} of layer {name!r}",
                expected=f"0 to {count - 1}",
                got=str(highest),
                remedy="choose other tokens, or layers of the same tokens",
            )
