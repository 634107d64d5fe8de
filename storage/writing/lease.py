"""Who is writing a sample where there are no locks: ``claims/<sample>.json``, kept alive by its owner.

It is created exclusively, and its content changes with every beat. An owner is gone if its process on this
machine is, or if the content has stood still for LEASE_SECONDS by the clock of whoever looks: the clocks of
two machines are never compared, and may jump. A claim whose owner is gone is taken over by a conditional put,
so that of several who try one succeeds. An owner that was held up looks whether the claim is still its own
before each file that it puts.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from i2am.storage.errors import SampleBusy
from i2am.storage.format.file_names import sample_file, sample_of_file
from i2am.storage.locations.remote import RemoteLocation

FOLDER = "claims"
"""Directory of the claims."""

LEASE_SECONDS = 60.0
"""Seconds without a beat after which an owner on another machine counts as gone."""

BEAT_SECONDS = 15.0
"""Seconds between two beats."""

_seen: dict[tuple[str, str], tuple[bytes, float]] = {}
"""(run, sample) to the content of another's claim, and when this process first saw it."""

_held: set[str] = set()
"""Owners of the claims that this process holds."""

_lock = threading.Lock()
"""Of the two."""


def lease_path(sample: str) -> str:
    """Return the path of a sample's claim below the run.

    Parameters
    ----------
    sample : str
        Sample id.

    Returns
    -------
    str
        ``claims/<encoded id>.json``.
    """
    return f"{FOLDER}/{sample_file(sample)}.json"


class Lease:
    """A sample that is this process's to write, until `release`.

    Parameters
    ----------
    location : RemoteLocation
        Where the run lives.
    sample : str
        Sample id.

    Attributes
    ----------
    inherited : bool
        It was taken over from an owner that is gone, which may have put files.

    Raises
    ------
    SampleBusy
        If another process holds it.
    """

    def __init__(self, location: RemoteLocation, sample: str) -> None:
        self._location, self._sample, self._path = location, sample, lease_path(sample)
        self._own = {**_this_process(), "owner": uuid.uuid4().hex, "beat": 0}
        self._content = _content(self._own)
        self._lost = False
        self._lock = threading.Lock()
        with _lock:  # first: another thread that clears up must not take it for a dead one's
            _held.add(str(self._own["owner"]))
        self._last = time.monotonic()  # when it was asked: others count from when they see it
        try:
            self.inherited = _take(location, sample, self._content)
        except BaseException:
            with _lock:
                _held.discard(str(self._own["owner"]))
            raise
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="i2am-claim", daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """Make sure that the claim is still ours; to be called before each file that is put.

        Raises
        ------
        SampleBusy
            If another process has taken it over.
        """
        with self._lock:
            if not self._lost and time.monotonic() - self._last > LEASE_SECONDS / 2:
                self._beat()
            if self._lost:
                raise SampleBusy(
                    f"sample {self._sample!r} was taken over by another process",
                    expected=f"a sign of life every {LEASE_SECONDS:.0f} s",
                    got="none that reached the store in time",
                    remedy="nothing is lost: the other process writes it",
                )

    def release(self, *, remove: bool = True) -> None:
        """Give the claim up; what cannot be removed now is swept up later.

        Parameters
        ----------
        remove : bool
            False where the server does not answer: it is not asked once more.
        """
        self._ended.set()
        self._thread.join()
        with _lock:
            _held.discard(str(self._own["owner"]))
        if not remove:
            return
        with suppress(OSError):
            if self._location.read(self._path) == self._content:
                self._location.remove(self._path)

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with (
                self._lock,
                suppress(OSError),
            ):  # a server that does not answer now may do so at the next beat
                self._beat()
                if self._lost:
                    return

    def _beat(self) -> None:
        self._own["beat"] += 1
        asked, content = time.monotonic(), _content(self._own)
        if not self._location.replace(self._path, self._content, content):
            try:
                content = self._location.read(self._path)  # of an earlier beat whose answer was lost?
            except FileNotFoundError:
                content = b""
            self._lost = _parsed(content).get("owner") != self._own["owner"]
        if not self._lost:
            self._content, self._last = content, asked


def sweep_leases(location: RemoteLocation, leftovers: Callable[[str], Iterable[str] | None]) -> None:
    """Remove the claims whose owners are gone, and the files that those had put.

    Parameters
    ----------
    location : RemoteLocation
        Where the run lives.
    leftovers : callable
        Sample id to the files that it may have in place without being committed; None if it is committed.
    """
    for name in location.names(FOLDER):
        sample = sample_of_file(name.removesuffix(".json"))
        with suppress(FileNotFoundError):
            content, files = location.read(f"{FOLDER}/{name}"), leftovers(sample)
            if files is None:  # committed: whoever wrote it is done
                location.remove(f"{FOLDER}/{name}")
            elif _is_gone(location, sample, content):
                with suppress(SampleBusy):  # somebody else was quicker
                    lease = Lease(location, sample)
                    try:
                        # Again: another may have taken it over, committed and released in the meantime.
                        for path in leftovers(sample) or ():
                            location.remove(path)
                    finally:
                        lease.release()


def _take(location: RemoteLocation, sample: str, content: bytes) -> bool:
    """Create the claim, or take it over from an owner that is gone; return whether it was taken over."""
    path = lease_path(sample)
    while not location.write_new(path, content):
        try:
            found = location.read(path)
        except FileNotFoundError:
            continue  # given up between the two
        if found == content:
            return False  # put, but the answer was lost
        if not _is_gone(location, sample, found) or not location.replace(path, found, content):
            raise SampleBusy(
                f"sample {sample!r} is being written by another process",
                got=_words(found),
                remedy=f"wait for it; a process that is gone is found out within {LEASE_SECONDS:.0f} s",
            )
        return True
    return False


def _is_gone(location: RemoteLocation, sample: str, content: bytes) -> bool:
    """Whether the owner of a claim is gone, as far as it can be told now."""
    owner = _parsed(content)
    here = _this_process()
    if here["host"] and owner.get("host") == here["host"]:
        if owner.get("pid") == here["pid"] and owner.get("started") == here["started"]:
            with _lock:
                return owner.get("owner") not in _held
        return not _hidden(owner.get("pid")) and _started(owner.get("pid")) != owner.get("started")
    now, key = time.monotonic(), (location.url, sample)
    with _lock:
        before = _seen.get(key)
        if before is None or before[0] != content:
            _seen[key] = content, now
            return False
        return now - before[1] > LEASE_SECONDS


def _content(own: dict[str, Any]) -> bytes:
    return json.dumps(own, sort_keys=True).encode()


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _words(content: bytes) -> str:
    owner = _parsed(content)
    return f"process {owner.get('pid')} of {owner.get('name')}"


def _this_process() -> dict[str, Any]:
    """Who we are: ``host`` is empty where processes cannot be looked up, and then only the lease counts."""
    pid = os.getpid()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        host = (
            f"{boot} {os.readlink('/proc/self/ns/pid')}"  # containers of one machine have pids of their own
        )
    except OSError:
        host = ""
    return {"host": host, "name": os.uname().nodename, "pid": pid, "started": _started(pid)}


def _hidden(pid: object) -> bool:
    """Whether a process is there that this one may not look at: a system may hide those of other users."""
    try:
        os.kill(int(str(pid)), 0)
    except PermissionError:
        return _started(pid) is None
    except (OSError, ValueError, OverflowError):
        return False
    return False


def _started(pid: object) -> str | None:
    """When a process of this machine began, in ticks; None if there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{int(str(pid))}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else fields[19]
