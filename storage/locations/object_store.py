"""S3, Google Cloud Storage and Azure through obstore: options, exclusive puts, and its errors in our words.

Credentials and endpoint come from the usual environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...) or
from options. Endpoint and region become part of a file system, which carries them to other processes;
credentials from the environment do not. Requests that fail with a server's error or a lost connection are
tried again with pauses.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from i2am.storage.errors import NoPermission, StoreUnavailable
from i2am.storage.locations.base import TooLarge, system_errors

PROTOCOLS = frozenset({"s3", "gs", "az"})
"""What obstore speaks better than fsspec's own packages."""

RETRY = {
    "max_retries": 1000,  # the time is what counts: a refused connection fails at once
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 2},
}
"""Enough for a server that restarts."""

ANSWERS = 6
"""How often an answer may break off, with growing pauses."""

PAUSE_SECONDS = 0.1
"""Before a request is repeated here for the first time."""

T = TypeVar("T")

_NAMES = {
    "endpoint_url": "endpoint",
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "anon": "skip_signature",
}
"""Options as s3fs calls them, and as obstore does."""

_CARRIED = {
    "endpoint": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
}
"""What is taken from the environment once, for processes that may have another."""


def object_filesystem(protocol: str, options: Mapping[str, Any]) -> Any:
    """Return the file system of an object store.

    Parameters
    ----------
    protocol : str
        Of the URL.
    options : mapping
        Names of s3fs (``endpoint_url``, ``key``, ``secret``, ``token``, ``anon``, ``region``) or of obstore.

    Returns
    -------
    obstore.fsspec.FsspecStore or None
        None where fsspec shall look for a package: another protocol, or no obstore.
    """
    if protocol not in PROTOCOLS:
        return None
    try:
        from obstore.fsspec import FsspecStore
    except ImportError:
        return None
    config = {_NAMES.get(name, name): value for name, value in options.items()}
    for name, variables in _CARRIED.items() if protocol == "s3" else ():
        found = next((os.environ[each] for each in variables if os.environ.get(each)), None)
        if found is not None and not config.get(name):
            config[name] = found
    client = dict(config.pop("client_options", {}))
    if str(config.get("endpoint") or "").startswith("http://"):
        client.setdefault("allow_http", True)
    retry = config.pop("retry_config", RETRY)
    return FsspecStore(protocol, client_options=client, retry_config=retry, **config)


def is_object_store(filesystem: Any) -> bool:
    """Return whether a file system came from `object_filesystem`.

    Parameters
    ----------
    filesystem : fsspec.AbstractFileSystem
        Any.

    Returns
    -------
    bool
        If so, `put_new` works on it.
    """
    return type(filesystem).__module__.startswith("obstore") and not PROTOCOLS.isdisjoint(
        [filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol
    )


def get(filesystem: Any, path: str, most: int | None) -> bytes:
    """Return an object, in one request.

    Parameters
    ----------
    filesystem : obstore.fsspec.FsspecStore
        Of `object_filesystem`.
    path : str
        Bucket and key.
    most : int or None
        Bytes above which its content is not read.

    Returns
    -------
    bytes
        Its content.

    Raises
    ------
    FileNotFoundError
        If there is none.
    TooLarge
        If it has more bytes.
    """
    import obstore

    bucket, key = filesystem._split_path(path)
    found = obstore.get(filesystem._construct_store(bucket), key)
    size = int(found.meta["size"])
    if most is not None and size > most:
        raise TooLarge(f"it has {size:,} bytes, more than {most:,}")
    return bytes(found.bytes())


def put_new(filesystem: Any, path: str, data: bytes) -> bool:
    """Put an object unless there is one, as one step of the server.

    A server may store the object and fail to say so; the request is then repeated and finds its own object.
    Hence what is there is compared with what was to be put: contents of different writers must differ where
    it matters who was first.

    Parameters
    ----------
    filesystem : obstore.fsspec.FsspecStore
        Of `object_filesystem`.
    path : str
        Bucket and key.
    data : bytes
        Content.

    Returns
    -------
    bool
        False if there was another.
    """
    import obstore
    from obstore.exceptions import AlreadyExistsError

    bucket, key = filesystem._split_path(path)
    store = filesystem._construct_store(bucket)
    try:
        obstore.put(store, key, data, mode="create")
    except AlreadyExistsError:
        try:
            return bytes(obstore.get(store, key).bytes()) == data
        except FileNotFoundError:  # removed since
            return False
    return True


def replace(filesystem: Any, path: str, old: bytes, new: bytes) -> bool:
    """Put an object in place of one with a certain content, as one step of the server.

    Parameters
    ----------
    filesystem : obstore.fsspec.FsspecStore
        Of `object_filesystem`.
    path : str
        Bucket and key.
    old, new : bytes
        What it must hold, and what it shall hold.

    Returns
    -------
    bool
        False if it held something else, or was gone.
    """
    import obstore
    from obstore.exceptions import PreconditionError

    bucket, key = filesystem._split_path(path)
    store = filesystem._construct_store(bucket)
    try:
        found = obstore.get(store, key)
        if bytes(found.bytes()) != old:
            return False
        obstore.put(store, key, new, mode={"e_tag": str(found.meta["e_tag"])})
    except FileNotFoundError:
        return False
    except PreconditionError:
        # Ours all the same, where the server had put it and its answer was lost.
        return bytes(obstore.get(store, key).bytes()) == new
    return True


def list_below(filesystem: Any, prefix: str) -> list[tuple[str, int]]:
    """List all objects below a prefix, a page of them with each request.

    Parameters
    ----------
    filesystem : obstore.fsspec.FsspecStore
        Of `object_filesystem`.
    prefix : str
        Bucket and folder.

    Returns
    -------
    list of (str, int)
        Path below the prefix, and bytes.
    """
    import obstore

    bucket, folder = filesystem._split_path(prefix)
    base = f"{folder.strip('/')}/".lstrip("/")
    pages = obstore.list(filesystem._construct_store(bucket), base)
    return [(item["path"][len(base) :], int(item["size"])) for page in pages for item in page]


def persistent(ask: Callable[[], T], again: type[Exception] | None = None) -> T:
    """Repeat a request whose answer breaks off, which obstore does for some kinds of request only.

    Parameters
    ----------
    ask : callable
        The request; asking twice must do no harm.
    again : type, optional
        Another error after which to repeat it.

    Returns
    -------
    object
        What it answers.
    """
    for attempt in range(ANSWERS - 1):
        try:
            return ask()
        except Exception as error:
            if not (_broke_off(error) or (again is not None and isinstance(error, again))):
                raise
            time.sleep(PAUSE_SECONDS * 2**attempt)
    return ask()


def _broke_off(error: Exception) -> bool:
    return type(error).__module__.startswith("obstore") and "response body error" in str(error)


@contextmanager
def store_errors(place: str) -> Iterator[None]:
    """Turn obstore's errors, and the system's, into the project's.

    Parameters
    ----------
    place : str
        What was being read or written.

    Raises
    ------
    NoPermission
        If the credentials are absent, wrong or not enough.
    StoreUnavailable
        If the server does not answer or goes on failing.
    StorageFull
        From the system. Missing objects stay `FileNotFoundError`.
    """
    try:
        with system_errors(place):
            yield
    except Exception as error:
        if not type(error).__module__.startswith("obstore") or isinstance(error, FileNotFoundError):
            raise
        first = str(error).strip().splitlines()[0][:300]
        if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):
            raise NoPermission(
                f"no permission for {place}", got=first, remedy="check credentials and the bucket's policy"
            ) from error
        raise StoreUnavailable(
            f"{place}: the object store does not answer as it should",
            got=first,
            remedy="check endpoint, bucket and network, and run again: what is committed is kept",
        ) from error
