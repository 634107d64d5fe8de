"""The ``zarr.json`` documents of the derived store: made by zarr-python, written by `MarginalStore`."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from i2am.analysis.marginals.quantities import ON_REFERENCE, quantities
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.run import Run

FORMAT = 1
SEAL_BYTES = 32
MARK = "i2am_marginals"


def zarr_documents(run: Run, layer: LayerSpec) -> dict[str, bytes]:
    """Path to content of the documents of the store, its root first, and of a layer's arrays."""
    sizes = tuple(quantities(run, layer).items())
    return _documents(run.run_id, len(run.declared), len(run.timesteps), layer, sizes)


@lru_cache(maxsize=256)
def _documents(
    run_id: str, samples: int, steps: int, layer: LayerSpec, sizes: tuple[tuple[str, int], ...]
) -> dict[str, bytes]:
    import zarr  # takes a while, and readers of stored marginals do not need it

    files: dict[str, Any] = {}
    store = zarr.storage.MemoryStore(files)
    root = zarr.create_group(store, attributes={MARK: {"format": FORMAT, "run_id": run_id}})
    names = [name for name, _ in sizes]
    group = root.create_group(layer.name, attributes={"layer": layer.to_json(), "quantities": names})

    def create(name: str, dtype: str, fill: float, shape: tuple[int, ...], axes: tuple[str, ...]) -> None:
        group.create_array(
            name, shape=shape, chunks=(1, *shape[1:]), dtype=dtype, fill_value=fill,
            filters=None, compressors=None, dimension_names=axes,
        )  # fmt: skip

    create("seal", "uint8", 0, (samples, len(names), SEAL_BYTES), ("sample", "quantity", "byte"))
    for name, tokens in sizes:
        token_axis = "ref" if name.partition("@")[0] in ON_REFERENCE else "gen"
        shape = (samples, steps, layer.heads, tokens)
        create(name, "float32", float("nan"), shape, ("sample", "step", "head", token_axis))
    return {path: data.to_bytes() for path, data in files.items()}


def same_node(found: bytes | None, expected: bytes) -> bool:
    """Whether two documents describe the same group or array, whichever version of zarr wrote them."""
    if found is None or found == expected:
        return found is not None
    try:
        return bool(_meaning(found) == _meaning(expected))
    except (ValueError, RecursionError):
        return False


def _meaning(document: bytes) -> Any:
    """The members of a document that say something: versions of zarr differ in the empty ones they write."""
    members = json.loads(document)
    if not isinstance(members, dict):
        return members
    return {name: value for name, value in members.items() if value not in (None, [], {})}
