"""`Sink`: where one sample's attention goes while it is being generated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from i2am.storage.errors import InputError, ShapeMismatch, UnknownName
from i2am.storage.format.commit_record import MAX_RECORD, CommitRecord, record_path
from i2am.storage.format.header import Header
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.layout import ArrayLayout
from i2am.storage.format.shard import FileRecord
from i2am.storage.format.signed_json import jsonable
from i2am.storage.writing.array_writer import ArrayWriter
from i2am.storage.writing.input_arrays import Piece, check_choice, checked, pieces, same_bits
from i2am.storage.writing.staging import Staging
from i2am.storage.writing.write_queue import Batch, WriteQueue

Array = np.ndarray[Any, Any]


def _given(spec: LayerSpec, arrays: Mapping[str, Array | None], copy: bool) -> dict[str, Array]:
    """The arrays that were given, checked, and copied if they may change."""
    given = {
        kind: np.array(checked(spec, kind, np.asarray(array)), copy=copy or None)
        for kind, array in arrays.items()
        if array is not None
    }
    check_choice(spec, given)
    return given


class Sink:
    """Takes the arrays of one sample; made by `RunWriter.sample`, which commits or discards it.

    Methods return at once unless the queue is full; an error of a background thread is raised by the next
    call. Safe to use from several threads.
    """

    def __init__(
        self,
        header: Header,
        sample: str,
        staging: Staging,
        queue: WriteQueue,
        find_image: Callable[[str], tuple[ArrayLayout, str]],  # name to layout and SHA-256 of its zarr.json
    ) -> None:
        self.sample = sample
        self._header = header
        self._index = header.position(sample)
        self._staging = staging
        self._queue = queue
        self._find_image = find_image
        self._batch = Batch()
        self._lock = threading.Lock()
        self._arrays: dict[tuple[str, str], tuple[int, ArrayWriter]] = {}
        self._steps: dict[tuple[str, str], set[int]] = {}  # (layer, kind) to the steps that were given
        self._keys: dict[str, Array] = {}
        self._images: dict[str, dict[str, Any]] = {}
        self._notes: dict[str, Any] = {}
        self._witness: dict[str, Any] = {}
        self._open = True

    def put(
        self,
        layer: str,
        step: int,
        *,
        query: Array | None = None,
        key: Array | None = None,
        scores: Array | None = None,
        lse: Array | None = None,
        value_norm: Array | None = None,
        contribution: Array | None = None,
        copy: bool = True,
    ) -> None:
        """Store what one layer computed at one step.

        Parameters
        ----------
        layer : str
            Name of a declared layer.
        step : int
            Index of the denoiser call, 0-based.
        query : ndarray
            (head, gen, dim), in the layer's dtype (or a wider one that holds the same values).
        key : ndarray
            (head, ref, dim). A static key may be left out once it was given.
        scores : ndarray
            (head, gen, ref) scaled logits, for a layer stored as scores; or give `query` and `key`.
        lse : ndarray
            (head, gen) float32: log-sum-exp of each row over all keys of a joint softmax.
        value_norm, contribution : ndarray
            (head, ref), given once where the key is static, and (gen,), float32; see FORMAT.md.
        copy : bool
            False hands the arrays over: nobody may change them afterwards.

        Raises
        ------
        UnknownName
            If the layer is not declared.
        ShapeMismatch
            If a shape or dtype does not fit. Values that the stored dtype cannot hold are found by the
            background thread, and reported by a later call.
        InputError
            If the step is out of range or given twice, the arrays do not suit the representation, or a static
            key changes.
        StorageFull, NoPermission, OSError
            From the background thread.
        """
        spec = self._header.layers.get(layer)
        if spec is None:
            raise UnknownName("layer", layer, self._header.layers)
        steps = len(self._header.timesteps)
        if isinstance(step, bool) or not hasattr(step, "__index__") or not 0 <= step < steps:
            raise InputError(
                f"layer {layer!r}: step", expected=f"an integer from 0 to {steps - 1}", got=repr(step)
            )
        arrays = {"query": query, "key": key, "scores": scores, "lse": lse}
        given = _given(spec, arrays | {"value_norm": value_norm, "contribution": contribution}, copy)
        for (lane, writer), piece in self._accept(spec, int(step), given):
            self._queue.submit(lane, partial(writer.put, piece.at, piece.rows), piece.nbytes, self._batch)

    def _accept(
        self, spec: LayerSpec, step: int, given: dict[str, Array]
    ) -> list[tuple[tuple[int, ArrayWriter], Piece]]:
        """Check a call against earlier ones, and only then record it: a refused call changes nothing."""
        with self._lock:
            self._check_open()
            key, new = self._static_key(spec, given.get("key"))
            found = pieces(spec, step, given, key, new=new)
            for piece in found:
                if piece.at in self._steps.get((spec.name, piece.kind), ()):
                    raise InputError(f"layer {spec.name!r}: {piece.kind} of step {step} was given before")
            if key is not None and new and spec.static_key:
                self._keys[spec.name] = key
            for piece in found:
                self._steps.setdefault((spec.name, piece.kind), set()).add(piece.at)
            layouts = self._header.layouts[spec.name]
            return [(self._writer(spec.name, piece.kind, layouts[piece.kind]), piece) for piece in found]

    def put_image(self, name: str, image: Array) -> None:
        """Store one image of the sample.

        Parameters
        ----------
        name : str
            Declared in `create_run` or by `RunWriter.add_image`.
        image : ndarray
            (y, x, channel) uint8, of the declared shape.

        Raises
        ------
        UnknownName
            If the image is not declared.
        ShapeMismatch
            If shape or dtype do not fit.
        InputError
            If the image was given before.
        """
        layout, digest = self._find_image(name)
        array = np.array(image)
        if array.dtype != np.uint8 or array.shape != layout.shape[1:]:
            raise ShapeMismatch(
                f"image {name!r}",
                expected=f"uint8 {layout.shape[1:]} [y, x, channel]",
                got=f"{array.dtype} {array.shape}",
            )
        with self._lock:
            self._check_open()
            if name in self._images:
                raise InputError(f"image {name!r} of sample {self.sample!r} was given before")
            self._images[name] = {"shape": list(layout.shape[1:]), "sha256": digest}
            lane, writer = self._writer("images", name, layout)
        self._queue.submit(lane, partial(writer.put_whole, array), array.nbytes, self._batch)

    def annotate(self, notes: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Add entries to the sample's commit record.

        Parameters
        ----------
        notes : mapping to JSON, optional
            Entries whose names come from outside.
        **more : JSON
            Seed, seconds, prompt, ...; later values replace earlier ones. What JSON cannot
            hold is kept as text.

        Raises
        ------
        InputError
            If a value contains itself.
        """
        entries = jsonable({**(notes or {}), **more})
        with self._lock:
            self._check_open()
            self._notes.update(entries)

    def witness(self, agreements: Mapping[str, Mapping[str, Any]]) -> None:
        """Record how what was stored compared with what the attention kernel was given.

        Parameters
        ----------
        agreements : mapping
            Layer to kernel, steps, rows, largest_difference and unwitnessed_steps; see FORMAT.md.

        Raises
        ------
        InputError
            If JSON cannot hold a value, or the sample is closed.
        """
        checked = jsonable(agreements)
        with self._lock:
            self._check_open()
            self._witness.update(checked)

    def _check_open(self) -> None:
        if not self._open:
            raise InputError(f"sample {self.sample!r} is closed", remedy="put arrays inside its with block")

    def _static_key(self, spec: LayerSpec, key: Array | None) -> tuple[Array | None, bool]:
        """Return the key to use, and whether it is new; refuse a static key that changes."""
        first = self._keys.get(spec.name) if spec.static_key else None
        if first is None:
            return key, key is not None
        if key is not None and not same_bits(first, key):
            raise InputError(
                f"layer {spec.name!r}: the key changes over time",
                expected="the bits of the first key: it is declared static",
                remedy='declare the layer with static_key=False, or capture with representation="scores"',
            )
        return first, False

    def _writer(self, group: str, name: str, layout: ArrayLayout) -> tuple[int, ArrayWriter]:
        if (group, name) not in self._arrays:
            number = len(self._arrays)
            stem = Path(self._staging.folder, str(number))
            writer = ArrayWriter(layout, self._index, self._header.run_id, self.sample, stem)
            self._arrays[group, name] = number, writer
        return self._arrays[group, name]

    def _check_complete(self) -> None:
        missing = []
        for layer, layouts in self._header.layouts.items():
            for kind, layout in layouts.items():
                steps = sorted(set(range(layout.shape[1])) - self._steps.get((layer, kind), set()))
                if steps:
                    more = f", ... ({len(steps)})" if len(steps) > 5 else ""
                    named = f" step {', '.join(map(str, steps[:5]))}{more}"
                    missing.append(f"{layer} {kind}" + (named if layout.shape[1] > 1 else ""))
        if missing:
            shown = " | ".join(missing[:6]) + (f" | ... ({len(missing)} arrays)" if len(missing) > 6 else "")
            raise InputError(
                f"sample {self.sample!r} is not complete",
                expected="every layer at every step",
                got=f"nothing for {shown}",
                remedy="the sample was not committed",
            )

    def commit(self) -> CommitRecord:
        """Wait for the writers, move the files into place and write the commit record.

        Returns
        -------
        CommitRecord
            As it was written.

        Raises
        ------
        InputError
            If a step, layer or key is missing.
        StorageFull, NoPermission, OSError
            If writing failed; nothing of the sample remains then.
        """
        with self._lock:
            self._check_open()
            self._open = False
        self._queue.wait(self._batch)
        self._check_complete()
        done: dict[str, tuple[Path, FileRecord]] = {}

        def finish(writer: ArrayWriter) -> None:
            done.update(writer.finish())

        for lane, writer in self._arrays.values():
            self._queue.submit(lane, partial(finish, writer), 0, self._batch)
        self._queue.wait(self._batch)
        record = CommitRecord(
            self._header.run_id,
            self.sample,
            self._index,
            datetime.now(UTC).isoformat(timespec="seconds"),
            files={path: file for path, (_, file) in sorted(done.items())},
            images=self._images,
            nonfinite={w.path: w.nonfinite for _, w in self._arrays.values() if w.nonfinite},
            annotations=self._notes,
            witness=self._witness,
        )
        content = record.to_bytes()
        if len(content) > MAX_RECORD:  # no reader would accept it
            raise InputError(
                f"sample {self.sample!r}: its commit record",
                expected=f"at most {MAX_RECORD:,} bytes",
                got=f"{len(content):,}",
                remedy="annotate less",
            )
        files = {path: local for path, (local, _) in done.items()}
        self._staging.publish(files, record_path(self.sample), content)
        self._staging.discard()
        return record

    def discard(self) -> None:
        """Stop, and leave nothing of the sample behind."""
        with self._lock:
            self._open = False
        self._queue.cancel(self._batch)
        self._staging.discard()
