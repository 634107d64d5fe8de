"""Who is writing a sample on object storage: the holder of its lease, ``leases/<sample>.json``.

A lease is created by an exclusive put and renewed by conditional puts that change its content. When
the content has not changed for LEASE_SECONDS, the lease has run out and another writer may take it over by a
conditional put, so that of several who try one succeeds. That time is measured by the monotonic clock of the
looking process; clocks of two machines are never compared. Before each file that it puts, a writer that may
have been suspended checks that the lease is still its own.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from i2am.storage.errors import SampleBusy
from i2am.storage.format.file_names import sample_file, sample_of_file
from i2am.storage.locations.remote import RemoteLocation

FOLDER = "leases"
"""Directory of the leases in a run."""

LEASE_SECONDS = 60.0
"""Seconds without a renewal after which a lease has run out."""

RENEW_SECONDS = 15.0
"""Seconds between two renewals."""

_first_seen: dict[tuple[str, str], tuple[bytes, float]] = {}
"""(run, sample) to the content of another writer's lease, and when this process first saw that content."""

_first_seen_lock = threading.Lock()


def lease_path(sample: str) -> str:
    """Return the path of a sample's lease below the run."""
    return f"{FOLDER}/{sample_file(sample)}.json"


class Lease:
    """The exclusive right to write a sample, renewed by a thread until `release`.

    `taken_over` says that the previous holder did not release it, and may have put files; `amends` that the
    sample is committed already. Raises `SampleBusy` if another writer holds the lease.
    """

    def __init__(self, location: RemoteLocation, sample: str, *, amends: bool = False) -> None:
        self._location, self._sample, self._path = location, sample, lease_path(sample)
        self._holder: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "name": f"process {os.getpid()} of {os.uname().nodename}",
            "renewals": 0,
            "amends": amends,
        }
        self._content = _to_bytes(self._holder)
        self._lost = False
        self._lock = threading.Lock()
        self._renewed = time.monotonic()  # before the put: others count from when they see it
        self.taken_over = _acquire(location, sample, self._content)
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="i2am-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `SampleBusy` if another writer has taken the lease over; to be called before each put."""
        with self._lock:
            if not self._lost and time.monotonic() - self._renewed > LEASE_SECONDS / 2:
                self._renew()
            if self._lost:
                raise SampleBusy(
                    f"sample {self._sample!r} was taken over by another process",
                    expected=f"a renewal of the lease every {LEASE_SECONDS:.0f} s",
                    got="none that reached the store in time",
                    remedy="nothing is lost: the other process writes it",
                )

    def release(self, *, remove: bool = True) -> None:
        """Give the lease up; without `remove` it is left to run out, as for a server that does not answer."""
        self._released.set()
        self._thread.join()
        if remove:
            with suppress(OSError):  # it runs out
                if self._location.read(self._path) == self._content:
                    self._location.remove(self._path)

    def _keep(self) -> None:
        while not self._lost and not self._released.wait(RENEW_SECONDS):
            with self._lock, suppress(OSError):  # the server may answer the next renewal
                self._renew()

    def _renew(self) -> None:
        self._holder["renewals"] += 1
        asked, content = time.monotonic(), _to_bytes(self._holder)
        if not self._location.replace(self._path, self._content, content):
            try:
                content = self._location.read(self._path)  # of an earlier renewal whose answer was lost?
            except FileNotFoundError:
                content = b""
            self._lost = _parse(content).get("id") != self._holder["id"]
        if not self._lost:
            self._content, self._renewed = content, asked


def sweep_leases(location: RemoteLocation, leftovers: Callable[[str], Iterable[str] | None]) -> None:
    """Remove the leases that have run out, and the files that their holders had put.

    `leftovers` maps a sample id to the files that it may have in place without being committed, or to None if
    it is committed.
    """
    for name in location.names(FOLDER):
        sample = sample_of_file(name.removesuffix(".json"))
        with suppress(FileNotFoundError):
            content, files = location.read(f"{FOLDER}/{name}"), leftovers(sample)
            if files is None and not _parse(content).get("amends"):  # committed, so its writer is done
                location.remove(f"{FOLDER}/{name}")
            elif _has_run_out(location, sample, content):
                with suppress(SampleBusy):  # another process was quicker
                    lease = Lease(location, sample)
                    try:
                        # Asked again: another may have taken it over, committed and released in the meantime.
                        for path in leftovers(sample) or ():
                            location.remove(path)
                    finally:
                        lease.release()


def _acquire(location: RemoteLocation, sample: str, content: bytes) -> bool:
    """Create the lease, or take over one that has run out; return whether it was taken over."""
    path = lease_path(sample)
    while not location.write_new(path, content):
        try:
            found = location.read(path)
        except FileNotFoundError:
            continue  # released between the two requests
        if found == content:
            return False  # it was put, but the answer was lost
        if not _has_run_out(location, sample, found) or not location.replace(path, found, content):
            raise SampleBusy(
                f"sample {sample!r} is being written by another process",
                got=str(_parse(found).get("name")),
                remedy=f"wait for it; the lease of a process that is gone runs out in {LEASE_SECONDS:.0f} s",
            )
        return True
    return False


def _has_run_out(location: RemoteLocation, sample: str, content: bytes) -> bool:
    now, key = time.monotonic(), (location.url, sample)
    with _first_seen_lock:
        seen, since = _first_seen.get(key, (None, now))
        if seen != content:
            _first_seen[key] = content, now
            return False
        return now - since > LEASE_SECONDS


def _to_bytes(holder: dict[str, Any]) -> bytes:
    return json.dumps(holder, sort_keys=True).encode()


def _parse(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
