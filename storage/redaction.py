"""Secrets in texts and configurations: what is shown, recorded or sent has ``***`` in their place.

A secret is known by its name (``hf_token: ...``), by its place (``://user:password@``), by its look
(``hf_...``), or by its value, once it was seen in options or stands in the environment under such a name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

HIDDEN = "***"

SHORTEST = 8
"""Characters of a value that is looked for in texts; a shorter one could be any word."""

_WORDS = (
    r"token(?!iz)|secret|passw|passphrase|credential|api_?key|account_?key|access_?key(?!_?id)|private_?key|"
    r"auth(?!or)|signature|connection_?string|cookie"
)
_NAME = re.compile(rf"(?i){_WORDS}|^(key|sas|pw|pwd)$")
_PLACES = (
    re.compile(r"(?<=://)(?:[^\s'\"@]*:[^\s'\"@]*|[^\s/'\"@]+)(?=@)"),  # of a URL's user
    re.compile(rf"(?i)(?<=[?&])((?:[\w.-]*(?:{_WORDS})[\w.-]*|sig|key)=)[^&\s'\"]+"),  # of its query
    re.compile(r"(?i)\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}"),
    re.compile(r"\b(?:hf_|gh[pousr]_|sk-)\w{16,}"),
)
_ASSIGNED = re.compile(rf"(?i)\b([\w-]*(?:{_WORDS})[\w-]*=)[^\s'\"]{{6,}}")  # export HF_TOKEN=...
_OPTIONS = frozenset({"storage_options", "client_options"})
"""Names below which every text is hidden."""

_seen: set[str] = set()


def is_secret(name: str) -> bool:
    """Whether what has this name is a secret."""
    return _NAME.search(name) is not None


def redacted(text: str) -> str:
    """The text without secrets: those in URLs, of a known look, or of a known value."""
    for value in sorted(_seen | _of_environment(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    for place in _PLACES:
        text = place.sub(lambda found: (found[1] if found.re.groups else "") + HIDDEN, text)
    return text


def redact(value: Any, name: str = "") -> Any:
    """JSON values without secrets; ``name`` is the key that ``value`` has."""
    if isinstance(value, Mapping):
        hidden = name if name in _OPTIONS else ""
        return {key: redact(item, hidden or str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, name) for item in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if name in _OPTIONS or is_secret(name) else _ASSIGNED.sub(rf"\1{HIDDEN}", redacted(value))


def remember(value: Any, name: str = "") -> None:
    """Hide the secrets of these options in every text from now on."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            remember(item, name if is_secret(name) else str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            remember(item, name)
    elif isinstance(value, str) and len(value) >= SHORTEST and is_secret(name):
        _seen.add(value)


@contextmanager
def without_secrets() -> Iterator[None]:
    """Take secrets out of the messages of an error that leaves the block, and of those that led to it."""
    try:
        yield
    except Exception as error:
        _redact_error(error)
        raise


def _redact_error(error: BaseException | None) -> None:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.args = tuple(redacted(part) if isinstance(part, str) else part for part in error.args)
        error = error.__cause__ or error.__context__


def _of_environment() -> set[str]:
    """Values of variables with such a name, but no paths."""
    return {
        value
        for name, value in os.environ.items()
        if len(value) >= SHORTEST and not value.startswith("/") and is_secret(name)
    }
