"""The ``zarr.json`` documents of a run, made in memory by zarr-python itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from i2am.storage.format.codecs import get_codec
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.layout import ArrayLayout
from i2am.storage.format.signed_json import canonical

_CONSOLIDATED = "consolidated_metadata"


def _compressors(layout: ArrayLayout) -> list[Any]:
    codec = get_codec(layout.codec)
    if not codec.cname:
        return [Crc32cCodec()]
    cname: Any = codec.cname
    shuffle: Any = codec.shuffle
    itemsize = np.dtype(layout.dtype).itemsize
    compressor = BloscCodec(cname=cname, clevel=codec.level, shuffle=shuffle, typesize=itemsize, blocksize=0)
    return [compressor, Crc32cCodec()]


def _create(group: zarr.Group, layout: ArrayLayout) -> None:
    group.create_array(
        layout.path,
        shape=layout.shape,
        chunks=layout.chunk,
        shards=layout.shard,
        dtype=layout.dtype,
        fill_value=0 if layout.dtype == "uint8" else float("nan"),
        filters=None,
        compressors=_compressors(layout),
        dimension_names=layout.dims,
        chunk_key_encoding={"name": "default", "separator": "."},
    )


def _documents(store: MemoryStore) -> dict[str, bytes]:
    return {path: bytes(data.to_bytes()) for path, data in store._store_dict.items()}


def _consolidated(group: bytes, arrays: Mapping[str, bytes]) -> bytes:
    """Repeat the arrays' metadata in their group's document, as zarr-python and xarray like to find it."""
    document = json.loads(group)
    metadata = {name: json.loads(data) for name, data in arrays.items()}
    document[_CONSOLIDATED] = {"kind": "inline", "must_understand": False, "metadata": metadata}
    return json.dumps(document, indent=2).encode()


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that netCDF holds too: no null and no truth values, and what has parts as JSON text.

    They describe a layer to other readers; this one takes everything from the root document.
    """
    found: dict[str, Any] = {}
    for key, value in attributes.items():
        if value is not None:
            whole = int(value) if isinstance(value, bool) else value
            found[key] = json.dumps(whole) if isinstance(whole, Mapping) else whole
    return found


def hierarchy_documents(
    layers: Iterable[tuple[LayerSpec, Mapping[str, ArrayLayout]]], images: Iterable[ArrayLayout]
) -> dict[str, bytes]:
    """Make every ``zarr.json`` of a new run but the root's."""
    store = MemoryStore()
    root = zarr.create_group(store, zarr_format=3)
    root.create_group("attention")
    root.create_group("images")
    described = list(layers)
    for order, (spec, layouts) in enumerate(described):
        root.create_group(f"attention/{spec.name}", attributes=_plain({**spec.to_json(), "order": order}))
        for layout in layouts.values():
            _create(root, layout)
    for layout in images:
        _create(root, layout)
    documents = _documents(store)
    del documents["zarr.json"]
    for spec, layouts in described:
        path = f"attention/{spec.name}"
        arrays = {kind: documents[f"{path}/{kind}/zarr.json"] for kind in layouts}
        documents[f"{path}/zarr.json"] = _consolidated(documents[f"{path}/zarr.json"], arrays)
    return documents


def image_document(layout: ArrayLayout) -> tuple[str, bytes]:
    """Make the ``zarr.json`` of one image array that is added to an existing run."""
    store = MemoryStore()
    _create(zarr.create_group(store, zarr_format=3), layout)
    path = f"{layout.path}/zarr.json"
    return path, _documents(store)[path]


def only_added_to(found: bytes, written: bytes) -> bool:
    """Whether another program added attributes or consolidated metadata to a document, and nothing else."""
    try:
        new, old = json.loads(found), json.loads(written)
        kept = {name: new["attributes"].get(name) for name in old.get("attributes", {})}
        if _CONSOLIDATED not in old:
            new.pop(_CONSOLIDATED, None)
        return {**new, "attributes": kept} == {"attributes": {}, **old}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def root_document(attributes: Mapping[str, Any]) -> bytes:
    """Make the root's ``zarr.json``, in canonical form."""
    return canonical({"zarr_format": 3, "node_type": "group", "attributes": {"i2am": dict(attributes)}})
