"""Choose the location of a run by its path or URL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2am.storage.locations.base import Location
from i2am.storage.locations.local import LocalLocation


def locate(path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Location:
    """Return the location of a run.

    Parameters
    ----------
    path : str or path-like
        A local path, ``file://`` or any URL that fsspec or obstore knows.
    storage_options : mapping, optional
        Options of the file system, for URLs.

    Returns
    -------
    Location
        Local or remote.

    Raises
    ------
    MissingDependency
        If the package that speaks the URL's protocol is absent.
    """
    text = os.fspath(path)
    if text.startswith(("file://", "local://")):
        text = text.split("://", 1)[1]
    if "://" not in text:
        return LocalLocation(Path(os.path.abspath(os.path.expanduser(text))))
    from i2am.storage.locations.remote import open_remote  # fsspec only where it is needed

    return open_remote(text, storage_options)
