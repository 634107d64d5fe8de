"""`create_run` and `resume_run`. A new run appears all at once, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from i2am.storage.errors import AlreadyExists, InputError
from i2am.storage.format.header import MAX_ROOT, ROOT, Header, load_header
from i2am.storage.format.layer_spec import UNSAID, LayerSpec
from i2am.storage.format.marginals_only import need_attention
from i2am.storage.format.zarr_metadata import root_document
from i2am.storage.locations.base import Location, system_errors
from i2am.storage.locations.local import LocalLocation
from i2am.storage.locations.open import locate
from i2am.storage.writing.atomic_directory import atomic_directory, clear_unfinished, created_meanwhile
from i2am.storage.writing.declaration import checked_timesteps, complete_header, make_header, resolve_layers
from i2am.storage.writing.plan import plan_header
from i2am.storage.writing.writer import RunWriter


def refuse_existing(location: Location) -> None:
    """Raise `AlreadyExists` unless nothing, or an empty directory, is at the place of a new run."""
    if isinstance(location, LocalLocation):
        with system_errors(location.url):
            taken = os.path.lexists(location.url) and (
                not os.path.isdir(location.url) or bool(os.listdir(location.url))
            )
    else:
        taken = location.size(ROOT) is not None or bool(location.names("commits"))
    if taken:
        raise AlreadyExists(
            f"{location.url} already exists",
            remedy="choose another path, resume the run with resume_run, or remove it first",
        )


def _create_local(root: Path, documents: Mapping[str, bytes], last: bytes) -> None:
    with atomic_directory(root) as made:
        (made / "commits").mkdir()
        for path, data in {**documents, ROOT: last}.items():
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            with (made / path).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())


def create_run(
    path: str | os.PathLike[str],
    layers: Iterable[LayerSpec],
    timesteps: Iterable[Any],
    samples: Iterable[str],
    attrs: Mapping[str, Any] | None = None,
    image_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    codec: str | None = None,
    shard_bytes: int | None = None,
    queue_bytes: int | None = None,
    threads: int | None = None,
) -> RunWriter:
    """Create a run and open it for writing.

    Parameters
    ----------
    path : str or path-like
        A directory that does not exist or is empty, or a URL.
    layers : iterable of LayerSpec
        In the order of the model.
    timesteps : iterable of number
        The scheduler's value for each denoiser call.
    samples : iterable of str
        Ids of all samples of the run.
    attrs, image_shapes : mapping, optional
        Entries of ``attributes["i2am"]``, what JSON cannot hold as text; image name to (y, x, channel).
    storage_options : mapping, optional
        Options of the file system, for URLs.
    codec : str, optional
        Key of `i2am.storage.format.codecs.CODECS`; FORMAT.md says why the default is what it is.
    shard_bytes : int, optional
        Bytes of a shard before compression; by default so many that files per sample stay few.
    queue_bytes, threads : int, optional
        See `RunWriter`.

    Returns
    -------
    RunWriter
        A context manager.

    Raises
    ------
    AlreadyExists
        If there is something at `path`.
    InputError
        If the declaration is impossible.
    StorageFull
        If the disk cannot hold what is planned; nothing is created then.
    NoPermission
        If the path cannot be written.
    """
    location = locate(path, storage_options)
    refuse_existing(location)
    header = make_header(
        layers, timesteps, samples, attrs, image_shapes, codec=codec, shard_bytes=shard_bytes
    )
    header = _write_new(location, header, queue_bytes, threads)
    return RunWriter(location, header, queue_bytes=queue_bytes, threads=threads)


def _write_new(location: Location, header: Header, queue_bytes: int | None, threads: int | None) -> Header:
    header, documents = complete_header(header)
    root = root_document(header.attributes)
    if len(root) > MAX_ROOT:  # before anything is written: no reader would open it
        raise InputError(
            "the root document of the run",
            expected=f"at most {MAX_ROOT:,} bytes",
            got=f"{len(root):,}",
            remedy="keep large values out of attrs, or cut the samples into several runs",
        )
    if isinstance(location, LocalLocation):
        plan_header(header, documents, queue_bytes=queue_bytes, threads=threads).check_disk(location.url)
        _create_local(Path(location.url), documents, root)
        return header
    for name, data in documents.items():
        location.write(name, data)
    if not location.write_new(ROOT, root):
        raise created_meanwhile(location.url)
    return header


def _refuse_change(
    header: Header, layers: Iterable[LayerSpec] | None, timesteps: Iterable[Any] | None
) -> None:
    """Raise `InputError` where layers or timesteps differ from the run's."""

    def differ(what: str, expected: str, got: str) -> InputError:
        remedy = "resume with the same settings, or create another run"
        return InputError(what, expected=expected, got=got, remedy=remedy)

    if timesteps is not None and (times := checked_timesteps(timesteps)) != header.timesteps:
        raise differ("timesteps", f"those of the run, {header.timesteps[:5]}...", f"{times[:5]}...")
    if layers is None:
        return
    given = {spec.name: spec for spec in layers}
    resolved = resolve_layers(given.values(), len(header.timesteps)) if given else {}
    if names := sorted(set(given) ^ set(header.layers)):
        raise differ("layers", "those of the run", f"a difference in {', '.join(names[:5])}")
    for name, spec in given.items():
        stored: dict[str, Any] = header.layers[name].to_json()
        wanted: dict[str, Any] = resolved[name].to_json()
        if spec.representation == "auto":
            wanted["representation"] = stored["representation"]
        for field in wanted | stored:
            was, now = (facts.get(field, UNSAID.get(field)) for facts in (stored, wanted))
            if was != now:
                raise differ(f"layer {name!r}: {field}", f"{was!r} as in the run", repr(now))


def resume_run(
    path: str | os.PathLike[str],
    layers: Iterable[LayerSpec] | None = None,
    timesteps: Iterable[Any] | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    queue_bytes: int | None = None,
    threads: int | None = None,
) -> RunWriter:
    """Open an existing run to write the samples that are not committed.

    Parameters
    ----------
    path : str or path-like
        The run.
    layers, timesteps : iterable, optional
        Where given, they must agree with the run.
    storage_options : mapping, optional
        Options of the file system, for URLs.
    queue_bytes, threads : int, optional
        See `RunWriter`.

    Returns
    -------
    RunWriter
        See `RunWriter.missing` for what there is to do.

    Raises
    ------
    NotFound, NotARun, NewerFormat, DamagedRun, NoPermission
        If the run cannot be opened.
    InputError
        If layers or timesteps differ from the run's.
    StorageFull
        If the disk cannot hold the samples that are missing.
    """
    location = locate(path, storage_options)
    header = load_header(location)
    need_attention(header.attributes, location.url, "capturing into it")
    if isinstance(location, LocalLocation):
        clear_unfinished(Path(location.url))
    _refuse_change(header, layers, timesteps)
    writer = RunWriter(location, header, queue_bytes=queue_bytes, threads=threads)
    if isinstance(location, LocalLocation) and (missing := writer.missing):
        plan_header(header, {}).check_disk(location.url, samples=len(missing))
    return writer
