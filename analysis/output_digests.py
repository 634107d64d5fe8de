"""Digests of a directory's results, kept in the file that marks it; hidden files do not count."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from i2am.storage.format.signed_json import DocumentError, canonical, parse_signed, signed

ALL = "outputs"  # the entry of a mark: {path below the directory: SHA-256 of the file}


def write_mark(folder: Path, names: Iterable[str], mark: str, facts: Mapping[str, Any]) -> None:
    """Write what was done, with the digests of everything below some names in a folder, and its own."""
    digests = {path: _sha256(folder / path) for path in _files(folder, set(names) - {mark})}
    (folder / mark).write_bytes(canonical(signed({**facts, ALL: digests})))


def read_mark(path: Path) -> dict[str, Any]:
    """What a mark says; `DocumentError` if it is not what was written."""
    facts = parse_signed(path.read_bytes())
    if not isinstance(facts.get(ALL), dict):
        raise DocumentError("it holds no digests: it was written by an earlier version")
    return facts


def changed_files(
    folder: Path, facts: Mapping[str, Any], on_file: Callable[[int], None] = lambda size: None
) -> Iterator[tuple[str, str]]:
    """(path, what is wrong) of each file that is not what a mark says; `on_file` gets every file's bytes."""
    known: Mapping[str, str] = facts[ALL]
    there = set(_files(folder, {path.partition("/")[0] for path in known}))
    for path in sorted({*known, *there}):
        if path not in there:
            yield path, "is missing"
        elif path not in known:
            yield path, "is no part of what was written"
        elif _sha256(folder / path) != known[path]:
            yield path, "is not what was written"
        on_file((folder / path).stat().st_size if path in there else 0)


def _files(folder: Path, names: Iterable[str]) -> Iterator[str]:
    for name in sorted(names):
        place = folder / name
        for file in place.rglob("*") if place.is_dir() else [place]:
            path = file.relative_to(folder)
            if file.is_file() and not any(part.startswith(".") for part in path.parts):
                yield path.as_posix()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
