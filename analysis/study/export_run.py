"""`export`: a part of a run to share, whole samples or the marginals alone.

With its marginals, a run without attention answers whatever is a mean of them: every level, both directions,
IMACS, tables and report. The two lie side by side: ``NEW.zarr`` and ``NEW.marginals.zarr``. On a local disk
both are built in hidden folders and renamed, the marginals first; elsewhere the root document is put last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2am.analysis.events import Listener, counter, ignore
from i2am.analysis.marginals.compute_missing import compute_missing_marginals
from i2am.analysis.marginals.store import MarginalStore, marginals_path, open_marginals
from i2am.analysis.marginals.zarr_metadata import MARK
from i2am.analysis.output_directory import refuse_inside_run
from i2am.storage.errors import DamageError, EmptyRun, InputError, UnknownName
from i2am.storage.format.header import MAX_ROOT, ROOT
from i2am.storage.locations.base import Location
from i2am.storage.locations.local import LocalLocation
from i2am.storage.locations.open import locate
from i2am.storage.reading.open import open_run
from i2am.storage.tools.export_without_attention import copy_without_attention
from i2am.storage.tools.prune import prune
from i2am.storage.writing.atomic_directory import atomic_directory
from i2am.storage.writing.create import refuse_existing
from i2am.storage.writing.staging import sweep

if TYPE_CHECKING:
    from i2am.storage.reading.run import Run


def export(
    run: Run | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    samples: Sequence[str] | None = None,
    marginals: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    on_event: Listener | None = None,
) -> Run:
    """Copy samples of a run to share them: with their whole attention, or with their marginals alone.

    Parameters
    ----------
    run
        An open run, or its path or URL.
    out
        Path or URL of the new run; nothing may be there.
    samples
        Ids; None for all, which takes `marginals`.
    marginals
        Leave the attention out, and put the marginals beside the new run; those that the run does not have
        yet are computed.
    storage_options
        For fsspec, where both runs lie at URLs.
    on_event
        Told of the stages "marginals" and "export".

    Returns
    -------
    Run
        The new run, opened.

    Raises
    ------
    AlreadyExists
        If something is at `out`, or where its marginals belong. A copy of whole samples that was interrupted
        is gone on with.
    UnknownName, EmptyRun, InputError
        For samples that there are not.
    DamagedRun, DamagedSample, DamageError
        If the run is damaged; nothing is exported then.
    StorageFull, NoPermission
        If `out` cannot be written.
    """
    emit = on_event or ignore
    source = open_run(run, storage_options) if isinstance(run, (str, os.PathLike)) else run
    names = _chosen(source, samples)
    if samples is None and not marginals:
        raise InputError(
            "what to export", expected="samples, or the marginals alone, or both", got="neither",
            remedy="i2am prune copies whole runs",
        )  # fmt: skip
    advance = counter(emit, "export", len(names))
    if not marginals:
        return prune(source, out, samples=names, storage_options=storage_options, on_sample=advance)
    beside = marginals_path(os.fspath(out))
    with _appearing(out, storage_options) as made, _appearing(beside, storage_options, source.run_id) as kept:
        _fill(source, names, kept, storage_options, emit)
        copy_without_attention(source, made, names, storage_options, advance)
    return open_run(out, storage_options)


def _chosen(run: Run, samples: Sequence[str] | None) -> tuple[str, ...]:
    for sample in samples or ():
        if sample not in run.samples:
            raise UnknownName("sample", sample, run.samples)
    chosen = tuple(sample for sample in run.samples if samples is None or sample in samples)
    if not chosen:
        raise EmptyRun(f"nothing to export of {run.path}", expected="at least one committed sample")
    return chosen


@contextmanager
def _appearing(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None, derived_from: str | None = None
) -> Iterator[Location]:
    """A place to write to that is at `path` when the block ends; after an error nothing is.

    Where `derived_from` names a run, its marginals may be there, left by an export that was killed before its
    run was in place; they are replaced.
    """
    location = locate(path, storage_options)
    left_over = derived_from is not None and _marginals_of(location) == derived_from
    if not left_over:
        refuse_existing(location)
    if isinstance(location, LocalLocation):
        root = Path(location.url)
        refuse_inside_run(root)
        with atomic_directory(root) as folder:
            yield LocalLocation(folder)
            sweep(folder, lambda _: ())
            if left_over:
                os.rename(root, folder.with_name("left over"))  # removed with what else was unfinished
        return
    if left_over:
        _remove_all(location)
    try:
        yield location
    except BaseException:
        # Our own run gets its root document as the last thing: a root that is there is another's run.
        if derived_from is not None or location.size(ROOT) is None:
            _remove_all(location)
        raise


def _marginals_of(place: Location) -> str | None:
    """The id of the run whose marginals lie there."""
    try:
        return str(json.loads(place.read(ROOT, MAX_ROOT))["attributes"][MARK]["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_all(place: Location) -> None:
    """Remove every file, the root document last: until then it says what they are."""
    for name, _ in sorted(place.files(), key=lambda file: file[0] == ROOT):
        place.remove(name)


def _fill(
    run: Run, names: Sequence[str], place: Location, options: Mapping[str, Any] | None, emit: Listener
) -> None:
    """Copy the marginals that there are, and compute the others."""
    known, target = open_marginals(run, storage_options=options), MarginalStore(run, place)
    for name in names:
        for layer in run.layers.values():
            if (values := known.load(layer, name)) is not None:
                target.save(layer, name, values)
    damaged = compute_missing_marginals(run, names, store=place.url, storage_options=options, emit=emit)
    for reason in damaged.values():
        raise DamageError(reason)
