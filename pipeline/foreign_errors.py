"""Errors of models and of users' functions, told in one line that says where they were raised."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from i2am.storage.errors import CaptureError


@contextmanager
def as_capture_error(what: str, remedy: str) -> Iterator[None]:
    """Raise a library's error of the block as CaptureError; the project's own, and the system's, pass."""
    try:
        yield
    except Exception as error:
        ours = type(error).__module__.partition(".")[0] == "i2am"
        if ours or isinstance(error, MemoryError) or getattr(error, "errno", None):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        raise CaptureError(
            what,
            got=f"{type(error).__name__}: {str(error)[:600]} ({where})",
            remedy=remedy,
        ) from error
