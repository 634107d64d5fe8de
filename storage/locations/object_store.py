"""Runs on S3, Google Cloud Storage and Azure, through obstore.

Credentials and endpoint come from the usual environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...) or
from options. A location that is pickled carries its options, endpoint and region to other processes, but no
credentials from the environment. Requests that fail with a server's error or a lost connection are tried
again with pauses.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from i2am.storage.errors import InputError
from i2am.storage.forked import refuse_fork
from i2am.storage.locations.base import STAGING, TooLarge
from i2am.storage.locations.remote import RemoteLocation, store_errors

PROTOCOLS = frozenset({"s3", "gs", "az"})
"""Protocols that go through obstore where it is installed, and else through fsspec."""

RETRY = {
    "max_retries": 1000,  # the time is what counts: a refused connection fails at once
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 2},
}
"""Retries of one request: long enough for a server that restarts."""

ONE_REQUEST = 32 << 20
"""Bytes of a file that is put by a single request; larger ones go in parts."""

ATTEMPTS = 6
"""Attempts at a request whose answer breaks off, which obstore itself does not repeat."""

PAUSE_SECONDS = 0.1
"""Before the second attempt; each further pause is twice as long."""

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
"""Settings that are read from the environment once, and travel with a pickled location."""

_OWN = frozenset({"retry_config", "client_options", "copy_if_not_exists"})
"""Settings that are not the user's."""

_stores: dict[str, Any] = {}
"""Bucket and settings to its store, whose connections are kept."""


_process: dict[str, int] = {}
"""The id of the process that first used an object store: obstore's threads are there."""


class ObjectStoreLocation(RemoteLocation):
    """A prefix of a bucket. Options have the names of s3fs or of obstore."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        super().__init__(url)
        protocol, _, path = url.partition("://")
        bucket, _, prefix = path.partition("/")
        self._bucket, self._prefix = f"{protocol}://{bucket}", prefix.strip("/")
        config = {_NAMES.get(name, name): value for name, value in options.items()}
        for name, variables in _CARRIED.items() if protocol == "s3" else ():
            found = next((os.environ[each] for each in variables if os.environ.get(each)), None)
            if found is not None and not config.get(name):
                config[name] = found
        client = config.pop("client_options", {})
        if not isinstance(client, Mapping):
            raise InputError(
                "storage_options: client_options", expected="a mapping", got=type(client).__name__
            )
        client = dict(client)
        if str(config.get("endpoint") or "").startswith("http://"):
            client.setdefault("allow_http", True)
        if protocol == "s3":
            config.setdefault("copy_if_not_exists", "multipart")
        self._settings = {"retry_config": RETRY, **config, "client_options": client}

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}".strip("/")

    def _ask(self, path: str, request: Callable[[Any], T], again: type[Exception] | None = None) -> T:
        """Make a request of the store, and again if its answer breaks off or it raises `again`."""
        with store_errors(f"{self.url}/{path}"):
            for attempt in range(ATTEMPTS - 1):
                try:
                    return request(self._store())
                except Exception as error:
                    if not (_broke_off(error) or (again is not None and isinstance(error, again))):
                        raise
                    time.sleep(PAUSE_SECONDS * 2**attempt)
            return request(self._store())

    def _store(self) -> Any:
        from obstore.store import from_url

        refuse_fork(_process.setdefault("id", os.getpid()), f"{self.url}: an object store is used")
        name = f"{self._bucket} {self._settings}"
        if name not in _stores:
            try:
                _stores[name] = from_url(self._bucket, **self._settings)
            except Exception as error:
                given = [each for each in self._settings if each not in _OWN]
                raise InputError(
                    f"the store {self._bucket}",
                    expected="storage_options that it takes: texts, true, false",
                    got=f"{', '.join(given) or 'none'}: {str(error).splitlines()[0][:200]}",
                    remedy="correct storage_options; numbers need quotes",
                ) from error
        return _stores[name]

    def read(self, path: str, most: int | None = None) -> bytes:
        """Return a whole object, in one request."""

        def get(store: Any) -> bytes:
            found = store.get(self._key(path))
            size = int(found.meta["size"])
            if most is not None and size > most:
                raise TooLarge(f"it has {size:,} bytes, more than {most:,}")
            return bytes(found.bytes())

        return self._ask(path, get)

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        return self._ask(path, lambda store: bytes(store.get_range(self._key(path), start=start, end=stop)))

    def size(self, path: str) -> int | None:
        try:
            return int(self._ask(path, lambda store: store.head(self._key(path)))["size"])
        except FileNotFoundError:
            return None

    def names(self, path: str) -> list[str]:
        found = self._ask(path, lambda store: store.list_with_delimiter(self._key(path)))
        keys = (*found["common_prefixes"], *(each["path"] for each in found["objects"]))
        return sorted(key.rsplit("/", 1)[-1] for key in keys)

    def files(self) -> Iterator[tuple[str, int]]:
        base = f"{self._prefix}/".lstrip("/")

        def list_all(store: Any) -> list[tuple[str, int]]:
            return [
                (item["path"][len(base) :], int(item["size"])) for page in store.list(base) for item in page
            ]

        yield from self._ask("", list_all)

    def write(self, path: str, data: bytes) -> None:
        self._ask(path, lambda store: store.put(self._key(path), data))

    def write_new(self, path: str, data: bytes) -> bool:
        """Put an object unless there is one, as one step of the server."""
        from obstore.exceptions import AlreadyExistsError

        def create(store: Any) -> bool:
            try:
                store.put(self._key(path), data, mode="create")
            except AlreadyExistsError:
                return self._holds(store, path, data)
            return True

        return self._ask(path, create)

    def replace(self, path: str, old: bytes, new: bytes) -> bool:
        """Put an object in place of one with a certain content, as one step of the server."""
        from obstore.exceptions import PreconditionError

        def exchange(store: Any) -> bool:
            try:
                found = store.get(self._key(path))
                content = bytes(found.bytes())
                if content != old:
                    return content == new  # it is there if an earlier answer was lost
                store.put(self._key(path), new, mode={"e_tag": str(found.meta["e_tag"])})
            except FileNotFoundError:
                return False
            except PreconditionError:
                return self._holds(store, path, new)
            return True

        return self._ask(path, exchange)

    def _holds(self, store: Any, path: str, content: bytes) -> bool:
        try:
            return bytes(store.get(self._key(path)).bytes()) == content
        except FileNotFoundError:
            return False

    def upload(self, path: str, source: Path) -> bool:
        """Put a local file as an object unless there is one, as one step of the server.

        A large one goes in parts to a name of its own, from which the server copies it.
        """
        key = self._key(path)
        if source.stat().st_size <= ONE_REQUEST:
            return self._make(path, source, lambda store: store.put(key, source, mode="create"))
        beside = f"{STAGING}/{path.rpartition('/')[2]}.{uuid.uuid4().hex}"
        try:
            # Where the last answer was lost, the parts have been joined already and are not found.
            self._ask(beside, lambda store: store.put(self._key(beside), source), again=FileNotFoundError)
            return self._make(path, source, lambda store: store.copy(self._key(beside), key, overwrite=False))
        finally:
            self.remove(beside)

    def _make(self, path: str, source: Path, request: Callable[[Any], Any]) -> bool:
        """Make an object; return whether it has the content of `source`: an earlier answer may be lost."""
        from obstore.exceptions import AlreadyExistsError

        def create(store: Any) -> bool:
            try:
                request(store)
            except AlreadyExistsError:
                return False
            return True

        if self._ask(path, create, again=FileNotFoundError):
            return True
        with source.open("rb") as file:
            same = self.size(path) == source.stat().st_size
            return same and all(block == file.read(len(block)) for block in self.stream(path))

    def remove(self, path: str) -> None:
        try:
            self._ask(path, lambda store: store.delete(self._key(path)))
        except FileNotFoundError:
            return


def _broke_off(error: Exception) -> bool:
    return type(error).__module__.startswith("obstore") and "response body error" in str(error)
