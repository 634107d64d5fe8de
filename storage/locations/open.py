"""Choose the location of a run by its path or URL."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2am.storage.locations.base import Location
from i2am.storage.locations.local import LocalLocation
from i2am.storage.locations.object_store import PROTOCOLS, ObjectStoreLocation
from i2am.storage.redaction import remember


def locate(path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Location:
    """Return the location of a run: a local path, ``file://`` or any URL that obstore or fsspec knows.

    Raises `InputError` for an unknown protocol, and `MissingDependency` where its package is absent.
    """
    text = os.fspath(path)
    remember(storage_options or {})
    if text.startswith(("file://", "local://")):
        text = text.split("://", 1)[1]
    if "://" not in text:
        return LocalLocation(Path(os.path.abspath(os.path.expanduser(text))))
    if text.split("://", 1)[0] in PROTOCOLS and importlib.util.find_spec("obstore") is not None:
        return ObjectStoreLocation(text, storage_options or {})
    from i2am.storage.locations.fsspec_location import open_fsspec  # fsspec only where it is needed

    return open_fsspec(text, storage_options or {})
