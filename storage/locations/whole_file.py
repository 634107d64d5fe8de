"""A file that is there whole, or as it was before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to: it takes that place at the end, and is removed after an error."""
    made = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield made
        os.replace(made, path)
    finally:
        made.unlink(missing_ok=True)
