"""The ``zarr.json`` documents of the derived store of marginals, so that any Zarr v3 reader opens it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from i2am.analysis.marginals.quantities import ON_REFERENCE, quantities

if TYPE_CHECKING:
    from i2am.storage.format.layer_spec import LayerSpec
    from i2am.storage.reading.run import Run

FORMAT = 1
SEAL_BYTES = 32
MARK = "i2am_marginals"


def documents(run: Run, layer: LayerSpec) -> dict[str, bytes]:
    """Metadata of the store and of a layer's arrays."""
    samples, sizes = len(run.declared), quantities(run, layer)
    found = {
        "zarr.json": _group({MARK: {"format": FORMAT, "run_id": run.run_id}}),
        f"{layer.name}/zarr.json": _group({"layer": layer.to_json(), "quantities": list(sizes)}),
        f"{layer.name}/seal/zarr.json": _array(
            (samples, len(sizes), SEAL_BYTES), "uint8", 0, ("sample", "quantity", "byte")
        ),
    }
    for name, tokens in sizes.items():
        axes = ("sample", "step", "head", "ref" if name.partition("@")[0] in ON_REFERENCE else "gen")
        shape = (samples, len(run.timesteps), layer.heads, tokens)
        found[f"{layer.name}/{name}/zarr.json"] = _array(shape, "float32", "NaN", axes)
    return {path: json.dumps(each, indent=2, sort_keys=True).encode() for path, each in found.items()}


def _group(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def _array(shape: tuple[int, ...], dtype: str, fill: object, axes: tuple[str, ...]) -> dict[str, Any]:
    codec = (
        {"name": "bytes", "configuration": {"endian": "little"}} if dtype != "uint8" else {"name": "bytes"}
    )
    return {
        "zarr_format": 3,
        "node_type": "array",
        "attributes": {},
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [codec],
        "dimension_names": list(axes),
    }
