"""A quick check of samples: their files are there, and of the size that was committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from i2am.storage.errors import DamagedRun, DamagedSample
from i2am.storage.format.commit_record import CommitRecord
from i2am.storage.format.file_names import layer_of
from i2am.storage.format.header import MAX_ROOT, ROOT, Header
from i2am.storage.format.marginals_only import has_attention, is_left_out
from i2am.storage.format.signed_json import sha256
from i2am.storage.locations.base import Location, TooLarge

FEW = 8
"""Samples whose files are asked for one by one on an object store, before all are listed at once."""


class Checker:
    """Checks samples of one run; the documents that they share are checked once."""

    def __init__(self, location: Location, header: Header) -> None:
        self._location, self._header = location, header
        self._metadata_checked = False
        self._documents: set[tuple[str, str]] = set()
        self._asked = 0
        self._listed: dict[str, int] | None = None

    def check(self, record: CommitRecord) -> None:
        """Raise `DamagedRun` or `DamagedSample` if metadata or the sizes of files are not as committed."""
        if not self._metadata_checked:
            for path, digest in self._header.attributes["metadata"].items():
                if not self._same(path, digest):
                    raise DamagedRun(
                        f"{self._location.url}: {path} is damaged",
                        remedy="restore it from a copy of the run",
                    )
            self._metadata_checked = True
        for name, image in record.images.items():
            document = f"images/{name}/zarr.json", image["sha256"]
            if document not in self._documents:
                if not self._same(*document, image["shape"]):
                    what = f"{document[0]} is not what was written"
                    raise DamagedSample(record.sample, f"images/{name}", what)
                self._documents.add(document)
        self._asked += 1
        whole = has_attention(self._header.attributes)
        for path, file in record.files.items():
            if not whole and is_left_out(path):
                continue
            found = self._size(path)
            if found != file.bytes:
                what = "is missing" if found is None else f"has {found} bytes instead of {file.bytes}"
                raise DamagedSample(record.sample, layer_of(path), f"{path} {what}")

    def _size(self, path: str) -> int | None:
        """Size of a file; on an object store from a listing, once many are asked for."""
        if self._location.root is None and self._asked > FEW and self._listed is None:
            self._listed = dict(self._location.files())
        return self._location.size(path) if self._listed is None else self._listed.get(path)

    def _same(self, path: str, digest: str, shape: Sequence[int] = ()) -> bool:
        try:
            data = self._location.read(path, MAX_ROOT)
            return document_state(self._header, path, digest, data, shape) != "damaged"
        except (FileNotFoundError, TooLarge):
            return False


def document_state(
    header: Header, path: str, digest: str, data: bytes, shape: Sequence[int] = ()
) -> Literal["as written", "added to", "damaged"]:
    """Compare a ``zarr.json`` with what was written; `shape` is that of an image that was added later."""
    if sha256(data) == digest:
        return "as written"
    from i2am.storage.format.zarr_metadata import hierarchy_documents, image_document, only_added_to

    if path.startswith("images/") and (name := path.split("/")[1]) != ROOT:
        written = image_document(header.image(name, shape or header.images[name]))[1]
    else:
        layers = [(spec, header.layouts[name]) for name, spec in header.layers.items()]
        written = hierarchy_documents(layers, [])[path]
    return "added to" if only_added_to(data, written) else "damaged"
