"""The declaration of a new run: checked, and turned into its header and metadata documents."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from i2am.storage.errors import InputError
from i2am.storage.format.codecs import DEFAULT_CODEC, get_codec
from i2am.storage.format.file_names import sample_file, sample_ids
from i2am.storage.format.header import FORMAT, OWN_KEYS, Header, Timestep, image_shape
from i2am.storage.format.layer_spec import LayerSpec, query_owner
from i2am.storage.format.layout import layer_layouts, shard_target
from i2am.storage.format.signed_json import jsonable, sha256, signed
from i2am.storage.format.zarr_metadata import hierarchy_documents


def _checked_samples(samples: Iterable[str]) -> tuple[str, ...]:
    ids = sample_ids(samples)
    files = [sample_file(sample) for sample in ids]
    if not ids:
        raise InputError("samples", expected="at least one id", got="none")
    if len(set(files)) != len(files):
        twice = next(sample for i, sample in enumerate(ids) if sample in ids[:i])
        raise InputError("samples", expected="ids that differ", got=f"{twice!r} twice")
    return ids


def checked_timesteps(timesteps: Iterable[Any]) -> tuple[Timestep, ...]:
    """Return the scheduler's values as Python numbers; raise `InputError` unless all are finite."""
    values: list[Timestep] = []
    for value in timesteps:
        number = value.item() if isinstance(value, np.generic) else value
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not np.isfinite(number):
            raise InputError("timesteps", expected="finite numbers", got=repr(value))
        values.append(number)
    if not values:
        raise InputError("timesteps", expected="at least one", got="none")
    return tuple(values)


def resolve_layers(layers: Iterable[LayerSpec], steps: int) -> dict[str, LayerSpec]:
    """Return the layers as stored, by name; one shares a query only where both are stored as factors."""
    found: dict[str, LayerSpec] = {}
    for spec in layers:
        if spec.name in found:
            raise InputError("layers", expected="names that differ", got=f"{spec.name!r} twice")
        owner = query_owner(spec, found)
        resolved = spec.resolve(steps)
        if spec.query_of and "scores" in (resolved.representation, owner.representation):
            resolved = replace(spec, query_of="").resolve(steps)
        found[spec.name] = resolved
    if not found:
        raise InputError("layers", expected="at least one LayerSpec", got="none")
    return found


def make_header(
    layers: Iterable[LayerSpec],
    timesteps: Iterable[Any],
    samples: Iterable[str],
    attrs: Mapping[str, Any] | None = None,
    image_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    codec: str | None = None,
    shard_bytes: int | None = None,
) -> Header:
    """Decide all about a run but its id, creation time and digests; takes the arguments of `create_run`."""
    ids, times = _checked_samples(samples), checked_timesteps(timesteps)
    specs = list(resolve_layers(layers, len(times)).values())
    own = jsonable(dict(attrs or {}))
    if clash := sorted(OWN_KEYS & set(own)):
        raise InputError("attrs", expected="names other than the store's own", got=", ".join(clash))
    name = get_codec(DEFAULT_CODEC if codec is None else codec).name
    if shard_bytes is None:
        cut = [a for s in specs for a in layer_layouts(s, len(ids), len(times), name, 1 << 62).values()]
        shard_bytes = shard_target(sum(a.stored_bytes() for a in cut), len(cut))
    elif shard_bytes < 1:
        raise InputError("shard_bytes", expected="at least 1", got=repr(shard_bytes))
    layouts = {s.name: layer_layouts(s, len(ids), len(times), name, shard_bytes) for s in specs}
    images = {image: image_shape(image, shape) for image, shape in (image_shapes or {}).items()}
    attributes = {
        **own,
        "format": FORMAT,
        "samples": list(ids),
        "timesteps": list(times),
        "codec": name,
        "layers": [spec.to_json() for spec in specs],
        "images": {k: list(v) for k, v in images.items()},
        "arrays": {s: {kind: a.to_json() for kind, a in arrays.items()} for s, arrays in layouts.items()},
    }
    return Header(attributes, {s.name: s for s in specs}, layouts, ids, times, images)


def complete_header(header: Header) -> tuple[Header, dict[str, bytes]]:
    """Return the header with id, creation time and digests, and path to content of all files but the root."""
    layers = [(spec, header.layouts[name]) for name, spec in header.layers.items()]
    images = [header.image(name, shape) for name, shape in header.images.items()]
    documents = hierarchy_documents(layers, images)
    attributes = signed(
        {
            **header.attributes,
            "run_id": str(uuid.uuid4()),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "metadata": {path: sha256(data) for path, data in documents.items()},
        }
    )
    return replace(header, attributes=attributes), documents
