"""`prune`: a smaller copy of a run: fewer samples, layers, steps or heads, or rounded numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numcodecs import BitRound

from i2am.storage.errors import AlreadyExists, InputError, NotFound, UnknownName
from i2am.storage.format.header import OWN_KEYS
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.layout import FLOAT32
from i2am.storage.format.marginals_only import need_attention
from i2am.storage.format.signed_json import jsonable
from i2am.storage.index_selection import Indices, select_indices
from i2am.storage.reading.open import open_run
from i2am.storage.reading.run import Run
from i2am.storage.writing.create import create_run, resume_run
from i2am.storage.writing.sink import Sink
from i2am.storage.writing.writer import RunWriter

Array = np.ndarray[Any, Any]

ROUNDED_CODEC = "blosc-zstd-bitshuffle"
"""Codec of a rounded run: the zeros that rounding leaves cost next to nothing after a bit shuffle."""

MANTISSA = {"float16": 10, "bfloat16": 7, "float32": 23}
"""Bits of the fraction of each dtype."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a pruned run keeps: of each layer some heads, and `bits` of the fraction (None: all)."""

    samples: tuple[str, ...]
    layers: dict[str, tuple[int, ...]]
    steps: tuple[int, ...]
    bits: int | None

    def to_json(self, run: Run) -> dict[str, Any]:
        """Return the entry ``pruned`` of the new run's attributes."""
        layers = {name: list(heads) for name, heads in self.layers.items()}
        steps: dict[str, Any] = {"steps": list(self.steps), "bits": self.bits}
        return {"run_id": run.run_id, "layers": layers, **steps}


def prune(
    run: Run | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    samples: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    steps: Indices = None,
    heads: Indices = None,
    bits: int | None = None,
    codec: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    on_sample: Callable[[str], None] | None = None,
) -> Run:
    """Copy a part of a run into a new one; go on with one that was interrupted.

    What is kept is the same to the bit unless `bits` is given. The source is not touched.

    Parameters
    ----------
    run : Run, str or path-like
        The source.
    out : str or path-like
        The new run.
    samples, layers : sequence of str, optional
        Committed samples, and names of layers or patterns such as ``*up*``, to keep.
    steps, heads : slice or sequence of int, optional
        What to keep; a layer must have all the heads that are named.
    bits : int, optional
        Bits of the fraction to keep of queries, keys and scores, from 1 to those of the dtype (float16 10,
        bfloat16 7, float32 23); see `round_bits`.
    codec : str, optional
        Key of `i2am.storage.format.codecs.CODECS`; the source's unless `bits` is given, then ROUNDED_CODEC.
    storage_options : mapping, optional
        Options of the file system of both runs, for URLs.
    on_sample : callable, optional
        Called with each sample that was copied.

    Returns
    -------
    Run
        The new run.

    Raises
    ------
    UnknownName, InputError
        If the selection fits nothing, or the bits do not fit the dtypes.
    AlreadyExists, NoAnswer
        If `out` is another run or pruning; if the source was exported with its marginals alone.
    DamagedSample, StorageFull, NoPermission
        If the source is damaged, or `out` cannot be written; samples copied before remain.
    """
    source = run if isinstance(run, Run) else open_run(run, storage_options)
    need_attention(source.attrs, source.path, "pruning")
    selection = _select(source, samples, layers, steps, heads, bits)
    with _writer(source, out, selection, codec, storage_options) as writer:
        for sample in writer.missing:
            _copy_sample(source, writer, sample, selection)
            if on_sample is not None:
                on_sample(sample)
    return open_run(out, storage_options)


def _copy_sample(source: Run, writer: RunWriter, sample: str, selection: Selection) -> None:
    images = source.record(sample)["images"]
    for name, image in images.items():
        writer.add_image(name, image["shape"])
    with writer.sample(sample) as sink:
        _copy(source, sink, sample, selection, images)


def _select(
    run: Run,
    samples: Sequence[str] | None,
    layers: Sequence[str] | None,
    steps: Indices,
    heads: Indices,
    bits: int | None,
) -> Selection:
    for sample in samples or ():
        if sample not in run.samples:
            raise UnknownName("sample", sample, run.samples)
    for pattern in layers or ():
        if not any(fnmatchcase(name, pattern) for name in run.layers):
            raise UnknownName("layer", pattern, run.layers)
    names = [n for n in run.layers if layers is None or any(fnmatchcase(n, p) for p in layers)]
    rows = {name: select_indices("head", heads, run.layers[name].heads) for name in names}
    times = select_indices("step", steps, len(run.timesteps))
    chosen = tuple(s for s in run.samples if samples is None or s in samples)
    for what, found in (("samples", chosen), ("layers", names)):
        if not found:
            raise InputError(f"{what} to keep", expected="at least one", got="none")
    for name in names:
        most = MANTISSA[run.layers[name].dtype]
        if bits is not None and not 1 <= bits <= most:
            raise InputError(f"bits of layer {name!r}", expected=f"1 to {most}", got=str(bits))
    return Selection(chosen, rows, times, bits)


def _writer(
    run: Run,
    out: str | os.PathLike[str],
    selection: Selection,
    codec: str | None,
    options: Mapping[str, Any] | None,
) -> RunWriter:
    wanted = jsonable(selection.to_json(run))
    try:
        writer = resume_run(out, storage_options=options)
    except NotFound:
        attrs = {key: value for key, value in run.attrs.items() if key not in OWN_KEYS}
        chosen = codec or (ROUNDED_CODEC if selection.bits is not None else str(run.attrs["codec"]))
        return create_run(
            out,
            pruned_layers(run, selection.layers),
            [run.timesteps[step] for step in selection.steps],
            selection.samples,
            {**attrs, "pruned": wanted},
            storage_options=options,
            codec=chosen,
        )
    if writer.attrs.get("pruned") != wanted or writer.samples != selection.samples:
        writer.close()
        raise AlreadyExists(
            f"{out} already exists", expected="nothing, or this pruning, interrupted", got="another run",
            remedy="choose another path",
        )  # fmt: skip
    return writer


def pruned_layers(run: Run, heads: Mapping[str, Sequence[int]]) -> list[LayerSpec]:
    """The layers that are kept; where the owner of a shared query is not, the first to share it is."""
    owners: dict[str, str] = {}
    found = []
    for name, kept in heads.items():
        spec = run.layers[name]
        owner = owners.setdefault(spec.query_of or name, name)
        query_of = "" if owner == name else owner
        found.append(replace(spec, heads=len(kept), scale=spec.logit_scale, query_of=query_of))
    return found


def _copy(run: Run, sink: Sink, sample: str, selection: Selection, images: Mapping[str, Any]) -> None:
    for pruned in pruned_layers(run, selection.layers):
        name = pruned.name
        spec, heads, group = run.layers[name], selection.layers[name], run.step_group(name)
        for start in range(
            0, len(selection.steps), group
        ):  # no stored chunk is read anew for each of its steps
            part = selection.steps[start : start + group]
            arrays = _arrays(run, spec, sample, part, heads, selection.bits)
            if pruned.query_of:
                del arrays["query"]
            if start and spec.static_key:
                arrays.pop("value_norm", None)  # stored once, and given with the first steps
            for row in range(len(part)):  # a static key has the first row alone
                given = {kind: array[row] for kind, array in arrays.items() if row < len(array)}
                sink.put(name, start + row, copy=False, **given)
    for name in images:
        sink.put_image(name, run.image(name, sample))
    record = run.record(sample)
    sink.annotate(record["annotations"])
    if selection.bits is None:  # rounded numbers are not what the kernel was given
        witness = record["witness"]
        sink.witness({name: witness[name] for name in selection.layers if name in witness})


def _arrays(
    run: Run, spec: LayerSpec, sample: str, steps: Sequence[int], heads: Sequence[int], bits: int | None
) -> dict[str, Array]:
    """The stored arrays of some steps (step, head, ...), rounded."""
    kinds = ["scores"] if spec.representation == "scores" else ["query", "key"]
    arrays = {}
    for kind in kinds:
        at = [0] if kind == "key" and spec.static_key else steps
        array = np.ascontiguousarray(run.read_kind(spec, kind, sample, at, heads))
        arrays[kind] = array if bits is None else round_bits(array, bits)
    for kind in (kind for kind in FLOAT32 if getattr(spec, kind)):
        at = [0] if kind == "value_norm" and spec.static_key else steps
        rows = range(spec.gen) if kind == "contribution" else heads  # that of all heads, kept as it is
        arrays[kind] = np.ascontiguousarray(run.read_kind(spec, kind, sample, at, rows))
    return arrays


def round_bits(array: Array, bits: int) -> Array:
    """Round float16 or float32 numbers to nearest, ties to even, keeping some bits of the fraction.

    NaN, infinities and numbers that would round to infinity are as before.
    """
    if bits >= MANTISSA[array.dtype.name]:
        return array
    codec = BitRound(keepbits=bits)
    out: Array = codec.decode(codec.encode(array.copy())).view(array.dtype).reshape(array.shape)
    return np.where(np.isfinite(array) & np.isfinite(out), out, array)
