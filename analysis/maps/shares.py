"""What each reference, and words, get of a joint softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from i2am.analysis.maps.attribution import attribution_maps
from i2am.storage.errors import NoAnswer
from i2am.storage.name_patterns import matching_names
from i2am.storage.reading.one_reference import references_of
from i2am.storage.reading.open import Place, open_any
from i2am.storage.reading.run_collection import AnyRun

REST = "rest"
"""What is left: the generated image's own tokens, and those that were not captured."""


def reference_shares(
    run: Place | Sequence[Place],
    samples: Sequence[str] | str | None = None,
    layers: Sequence[str] | str | None = None,
    **asked: Any,
) -> pl.DataFrame:
    """Share of each reference, and of words, in the joint softmax, mean over patches, heads, steps, layers.

    Parameters
    ----------
    run
        An open run, its path or URL, or several as one, whose layers have one softmax over all keys.
    samples, layers
        None for all; layers by name or pattern, which mean those of every reference.
    **asked
        steps, heads, store, storage_options, as for `i2am.attribution_maps`.

    Returns
    -------
    polars.DataFrame
        sample, reference ("reference", "reference-1", ..., "text", "rest"), share from 0 to 1. The shares of
        a sample sum to 1; "rest" is the generated image's own tokens, and all that was not captured.

    Raises
    ------
    NoAnswer
        If a reference has a softmax of its own: it then has no share.
    UnknownName, InputError, EmptyRun
        For what does not exist.
    """
    opened = open_any(run, asked.get("storage_options"))
    known = references_of(opened)
    found = {}
    for name in known:
        if not all(layer.lse for layer in opened.layers.values() if layer.reference == name):
            raise NoAnswer(
                f"shares of {name!r}", expected="layers of a joint softmax",
                got="one with a softmax of its own", remedy="ask for maps: attribution_maps(reference=...)",
            )  # fmt: skip
        own = layers_of_reference(opened, name, layers)
        maps = attribution_maps(
            opened, "r2g", samples=samples, method="joint", reference=name, layers=own, **asked
        )
        found[name] = maps.mean(("y", "x")).compute()
    rows = []
    for sample in map(str, found[known[0]]["sample"].values):
        shares = {name: float(found[name].sel(sample=sample)) for name in known}
        shares[REST] = 1 - sum(shares.values())
        rows += [{"sample": sample, "reference": name, "share": share} for name, share in shares.items()]
    return pl.DataFrame(rows, schema={"sample": pl.String, "reference": pl.String, "share": pl.Float64})


def layers_of_reference(run: AnyRun, reference: str, layers: Sequence[str] | str | None) -> list[str] | None:
    """Those of one reference that are asked for, by what stands before the mark "@" of another one."""
    if layers is None:
        return None
    names = [name for name, layer in run.layers.items() if layer.reference == reference]
    sites = {name.partition("@")[0] for name in run.layers}
    wanted = matching_names(
        "layer", [layers] if isinstance(layers, str) else list(layers), [*run.layers, *sites]
    )
    return [name for name in names if {name, name.partition("@")[0]} & set(wanted)]
