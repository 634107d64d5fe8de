"""`verify`: read every byte of a run and compare it with what was committed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from i2am.storage.errors import DamagedRun, DamagedSample
from i2am.storage.format.commit_record import FOLDER, CommitRecord, read_record, record_path, unwitnessed
from i2am.storage.format.file_names import layer_of, sample_file
from i2am.storage.format.header import MAX_ROOT, ROOT, Header, load_header
from i2am.storage.format.layout import ArrayLayout
from i2am.storage.format.marginals_only import has_attention, is_left_out
from i2am.storage.format.shard import ShardError
from i2am.storage.format.zarr_metadata import root_document
from i2am.storage.locations.base import STAGING, Location, TooLarge
from i2am.storage.locations.open import locate
from i2am.storage.reading.quick_check import document_state
from i2am.storage.reading.shard_check import check_shard
from i2am.storage.writing.failures import FOLDER as FAILURES
from i2am.storage.writing.lease import FOLDER as LEASES

_ADDED = "another program added to it, or wrote it anew; what is the store's own is as it was written"


@dataclass(frozen=True, slots=True)
class Problem:
    """One file that is not as it was written.

    `sample` and `layer` (or ``images/<name>``) say what it belongs to, or are None.
    """

    sample: str | None
    layer: str | None
    path: str
    what: str

    def __str__(self) -> str:
        place = [f"sample {self.sample!r}"] if self.sample is not None else ["run"]
        if self.layer is not None:
            place.append(f"layer {self.layer!r}")
        return f"{', '.join(place)}: {self.path}: {self.what}"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a verification is: files and bytes that were read, and all."""

    files_done: int
    files: int
    bytes_done: int
    bytes: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Outcome of a verification.

    Parameters
    ----------
    path : str
        The run.
    problems : tuple of Problem
        Damage; none in an undamaged run.
    notes : tuple of str
        What is no damage but worth knowing: uncommitted samples, leftovers, files that are not the store's.
    samples, files, bytes : int
        What was checked.
    """

    path: str
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    samples: int
    files: int
    bytes: int

    @property
    def ok(self) -> bool:
        """Whether every byte is as it was written."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types: ok, path, problems, notes, samples, files, bytes."""
        problems = [asdict(problem) for problem in self.problems]
        return {"ok": self.ok, **asdict(self), "problems": problems, "notes": list(self.notes)}


@dataclass(slots=True)
class _Check:
    """The state of one verification."""

    location: Location
    header: Header
    found: dict[str, int]
    on_progress: Callable[[Progress], None] | None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = sum(self.found.values())

    def problem(self, sample: str | None, path: str, what: str) -> None:
        self.problems.append(Problem(sample, layer_of(path), path, what))

    @property
    def found_records(self) -> list[str]:
        """Paths of the files that may be commit records."""
        return [
            path
            for path in self.found
            if path.startswith(f"{FOLDER}/") and path.endswith(".json") and not path.startswith(f"{FOLDER}/.")
        ]

    def advance(self, nbytes: int) -> None:
        self.files += 1
        self.bytes += nbytes
        if self.on_progress is not None:
            self.on_progress(Progress(self.files, len(self.found), self.bytes, self.total))

    def was_under_way(self, sample: str, path: str) -> bool:
        """Look again at a file without a record: its writer may have begun, ended or given up since."""
        held = {
            name.removesuffix(".json")
            for name in (*self.location.names(STAGING), *self.location.names(LEASES))
        }
        committed = self.location.size(record_path(sample)) is not None
        return sample_file(sample) in held or committed or self.location.size(path) is None

    def metadata(self, path: str, digest: str, sample: str | None, shape: Sequence[int] = ()) -> None:
        try:
            data = self.location.read(path, MAX_ROOT)
        except FileNotFoundError:
            self.problem(sample, path, "is missing")
            return
        except (DamagedRun, TooLarge) as error:  # a link, or far too large
            self.problem(sample, path, str(error))
            return
        state = document_state(self.header, path, digest, data, shape)
        if state == "damaged":
            self.problem(sample, path, "is not what was written at creation")
        elif state == "added to":
            self.notes.append(f"{path}: {_ADDED}")
        self.advance(len(data))

    def data(self, record: CommitRecord, layout: ArrayLayout, shard: int) -> None:
        path = layout.key(record.index, shard)
        try:
            check_shard(self.location, layout, record, shard)
        except (ShardError, DamagedRun) as error:  # DamagedRun: a link
            self.problem(record.sample, path, str(error))
        self.advance(self.found.get(path, 0))


def _check_records(check: _Check) -> dict[str, CommitRecord]:
    """Read all commit records; return those that are undamaged."""
    known = {record_path(sample): sample for sample in check.header.samples}
    records = {}
    for path in sorted(check.found_records):
        if path not in known:
            check.problem(None, path, "is no commit record of a declared sample")
            continue
        try:
            records[known[path]] = read_record(check.location, check.header, known[path])
        except DamagedSample as error:
            check.problem(known[path], path, error.what)
        check.advance(check.found[path])
    return records


def _layouts(header: Header, record: CommitRecord) -> Iterator[ArrayLayout]:
    """Yield the layouts of all arrays of a sample."""
    for layouts in header.layouts.values():
        yield from layouts.values()
    for name, image in record.images.items():
        yield header.image(name, image["shape"])


def _explain_rest(check: _Check, records: Mapping[str, CommitRecord], seen: set[str]) -> None:
    """Explain the files that belong to no committed sample and no metadata."""
    header = check.header
    held = {"/".join(p.split("/")[:2]) for p in check.found if p.startswith((f"{STAGING}/", f"{LEASES}/"))}
    staged = {path.split("/")[1].removesuffix(".json") for path in held}
    arrays = {layout.path for layouts in header.layouts.values() for layout in layouts.values()}
    for path in sorted(set(check.found) - seen):
        folder, _, name = path.rpartition("/")
        parts = name.split(".")
        if path.startswith((f"{STAGING}/", f"{LEASES}/")):
            continue
        if folder == FAILURES:
            check.notes.append(f"{path}: a sample that was set aside as failed")
            continue
        image = folder.startswith("images/") and folder.count("/") == 1
        numbered = parts[0] == "c" and len(parts) > 1 and all(part.isdecimal() for part in parts[1:])
        if not (folder in arrays or image) or not numbered:
            check.notes.append(f"{path}: not part of the store")
            continue
        index = int(parts[1])
        sample = header.samples[index] if index < len(header.samples) else None
        if sample is None or sample in records:
            check.problem(sample, path, "is no part of what was committed")
        elif f"{FOLDER}/{sample_file(sample)}.json" in check.found:
            continue  # its record is damaged, and reported above
        elif sample_file(sample) not in staged:
            if not check.was_under_way(sample, path):
                check.problem(sample, path, "belongs to a sample whose commit record is missing")
        else:
            check.notes.append(f"{path}: left by a writer that did not finish")
    check.notes.extend(f"{path}: a sample under way, or left by a crashed writer" for path in sorted(held))


def _note_unwitnessed(check: _Check, records: Mapping[str, CommitRecord]) -> None:
    """Say which samples hold attention that was not compared with the model's kernel at every step."""
    captured = "adapter" in check.header.attributes
    unseen = {
        sample: layers
        for sample, record in records.items()
        if (captured or record.witness) and (layers := unwitnessed(record.witness, check.header.layers))
    }
    if unseen:
        layers = [layer for layer in check.header.layers if any(layer in found for found in unseen.values())]
        check.notes.append(
            "unwitnessed: attention that was not compared with the kernel at every step, "
            f"of {_some('sample', list(unseen))} in {_some('layer', layers)}"
        )


def _some(noun: str, names: Sequence[str]) -> str:
    """A number of things, the first of them by name."""
    more = ", ..." if names[5:] else ""
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'} ({', '.join(names[:5])}{more})"


def _run_check(check: _Check) -> None:
    metadata: Mapping[str, str] = check.header.attributes["metadata"]
    seen = {ROOT}
    check.advance(check.found.get(ROOT, 0))
    if check.location.read(ROOT, MAX_ROOT) != root_document(check.header.attributes):
        check.notes.append(f"{ROOT}: {_ADDED}")
    for path, digest in metadata.items():
        check.metadata(path, digest, None)
        seen.add(path)
    records = _check_records(check)
    seen |= set(check.found_records)
    images: dict[str, str] = {}
    whole = has_attention(check.header.attributes)
    for sample, record in records.items():
        for name, image in record.images.items():
            path = f"images/{name}/{ROOT}"
            if path not in seen:
                check.metadata(path, image["sha256"], sample, image["shape"])
                images[path] = image["sha256"]
                seen.add(path)
            elif images.get(path, metadata.get(path)) != image["sha256"]:
                check.problem(sample, path, "its digest disagrees with the commit record")
        for layout in _layouts(check.header, record):
            for shard in range(layout.shards):
                path = layout.key(record.index, shard)
                if whole or path in check.found or not is_left_out(path):
                    check.data(record, layout, shard)
                seen.add(path)
    _explain_rest(check, records, seen)
    _note_unwitnessed(check, records)
    if not whole:
        check.notes.append("the attention was left out when the run was exported")
    missing = len(check.header.samples) - len(records)
    if missing:
        check.notes.append(f"{missing} of {len(check.header.samples)} declared samples are not committed")


def verify(
    path: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> VerifyReport:
    """Check every file of a run, and that all are there; `i2am.verify` also takes a study and marginals."""
    location = locate(path, storage_options)
    try:
        header = load_header(location)
    except DamagedRun as error:
        return VerifyReport(
            location.url, (Problem(None, None, ROOT, str(error)),), (), 0, 1, location.size(ROOT) or 0
        )
    check = _Check(location, header, dict(location.files()), on_progress)
    _run_check(check)
    records = len(check.found_records)
    return VerifyReport(
        location.url, tuple(check.problems), tuple(check.notes), records, check.files, check.bytes
    )
