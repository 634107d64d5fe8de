"""Names from outside, made safe to use in paths: sample ids, layer names, image names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeGuard
from urllib.parse import quote, unquote

from i2am.storage.errors import InputError

MAX_FILE_NAME = 200
"""Longest encoded name in bytes: file systems allow 255, and suffixes are added."""

_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def _unprintable(text: str) -> bool:
    return any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in text)


def _percent(character: str) -> str:
    return f"%{ord(character):02X}"


def sample_file(sample: object) -> str:
    """Encode a sample id as a file name, one to one.

    Letters, digits, ``_ . - ~`` stay; every other UTF-8 byte becomes ``%XX``, and so do a leading dot, a
    trailing dot and the first letter of names that some systems reserve (``CON``).
    """
    if not isinstance(sample, str) or not sample:
        raise InputError("sample id", expected="a non-empty text", got=repr(sample))
    if _unprintable(sample):
        raise InputError("sample id", expected="text without control characters", got=repr(sample))
    name = quote(sample, safe="")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if name.endswith("."):
        name = name[:-1] + "%2E"
    if _RESERVED.fullmatch(name):
        name = _percent(name[0]) + name[1:]
    if len(name) > MAX_FILE_NAME:
        raise InputError(
            "sample id",
            expected=f"at most {MAX_FILE_NAME} bytes once encoded",
            got=f"{len(name)} ({sample[:40]!r}...)",
            remedy="use a shorter id and keep the long name in annotations",
        )
    return name


def sample_ids(samples: Iterable[str], what: str = "samples") -> tuple[str, ...]:
    """Sample ids out of any list, array, column or generator, checked; refuses a text, which is one id."""
    if isinstance(samples, str) or not isinstance(samples, Iterable):
        raise InputError(what, expected="a list of ids", got=repr(samples)[:200])
    ids = tuple(samples)
    for id in ids:
        sample_file(id)
    return tuple(str(id) for id in ids)


def sample_of_file(name: str) -> str:
    return unquote(name)


def is_segment(name: object) -> TypeGuard[str]:
    return (
        isinstance(name, str)
        and name != ""
        and not _unprintable(name)
        and "/" not in name
        and "\\" not in name
        and not name.startswith((".", "__"))
        and name != "zarr.json"
        and len(name.encode()) <= MAX_FILE_NAME
    )


def check_segment(kind: str, name: object) -> str:
    """Return a layer or image name that can stand as one segment of a Zarr path, or raise `InputError`."""
    if not is_segment(name):
        raise InputError(
            f"{kind} name",
            got=repr(name)[:80],
            expected="one path segment: no slash, no control character, no leading dot or '__', "
            f"at most {MAX_FILE_NAME} bytes, not zarr.json",
        )
    return name


def layer_of(path: str) -> str | None:
    """Return the layer, or ``images/<name>``, that a file below the run belongs to; None for others."""
    parts = path.split("/")
    if len(parts) < 3:
        return None
    return parts[1] if parts[0] == "attention" else f"images/{parts[1]}" if parts[0] == "images" else None
