"""JSON documents with one byte form and a digest of their own, so that any changed byte shows.

The canonical form: keys sorted, indent of one space, ASCII, no NaN or infinity, one newline at the end. A
*signed* document carries ``digest``: the SHA-256 of the canonical form of all its other entries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from i2am.storage.errors import InputError


class DocumentError(ValueError):
    """Bytes that are not the canonical form of a document, or whose digest disagrees."""


def canonical(value: Any) -> bytes:
    """Serialise to the canonical form.

    Parameters
    ----------
    value : object
        Anything that JSON can hold.

    Returns
    -------
    bytes
        ASCII, with a newline at the end.

    Raises
    ------
    InputError
        If JSON cannot hold the value (unknown types, NaN, infinity, lone surrogates).
    """
    try:
        return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            "attributes or annotations",
            expected="values that JSON can hold (text, finite numbers, lists, dicts)",
            got=str(error),
        ) from error


def plain(value: Any) -> Any:
    """Return the value as it will be read back: tuples as lists, keys as text.

    Parameters
    ----------
    value : object
        Anything that JSON can hold.

    Returns
    -------
    object
        A new object of dicts, lists, text, numbers, booleans and None.

    Raises
    ------
    InputError
        If JSON cannot hold the value.
    """
    return json.loads(canonical(value))


def sha256(data: bytes) -> str:
    """Return the SHA-256 of some bytes.

    Parameters
    ----------
    data : bytes
        The bytes.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    return hashlib.sha256(data).hexdigest()


def signed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Add the digest of a document to it.

    Parameters
    ----------
    document : mapping
        Entries; an entry ``digest`` is replaced.

    Returns
    -------
    dict
        The entries and ``digest``.
    """
    rest = {k: v for k, v in document.items() if k != "digest"}
    return {**rest, "digest": sha256(canonical(rest))}


def parse(data: bytes) -> dict[str, Any]:
    """Read a document and check that the bytes are its canonical form.

    Parameters
    ----------
    data : bytes
        The file's content.

    Returns
    -------
    dict
        The document.

    Raises
    ------
    DocumentError
        If the bytes are not JSON, not an object, or not the canonical form.
    """
    try:
        value = json.loads(data.decode("ascii"))
        same = canonical(value) == data
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"not a JSON document ({error})") from error
    if not isinstance(value, dict):
        raise DocumentError("not a JSON object")
    if not same:
        raise DocumentError("its bytes are not in canonical form")
    return value


def parse_signed(data: bytes) -> dict[str, Any]:
    """Read a signed document; its digest is that of its bytes without the digest's own line."""
    try:
        value = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"not a JSON document ({error})") from error
    if not isinstance(value, dict):
        raise DocumentError("not a JSON object")
    line = f'\n "digest": "{value.get("digest")}",'.encode("ascii")
    if sha256(data.replace(line, b"", 1)) != value.get("digest"):
        raise DocumentError("its digest disagrees with its content")
    return value


def check_digest(document: Mapping[str, Any]) -> None:
    """Check the digest that a signed document carries.

    Parameters
    ----------
    document : mapping
        As made by `signed`.

    Raises
    ------
    DocumentError
        If the digest is absent or disagrees.
    """
    if document.get("digest") != signed(document)["digest"]:
        raise DocumentError("its digest disagrees with its content")
