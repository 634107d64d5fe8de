"""Turns on a GPU: sweeps on one machine use each GPU one at a time.

A turn is a slot of Prefect's global concurrency limit ``i2am-gpu:<host>:<gpu>``, which anyone can see, and
widen or close. Slots are leased: one whose holder died is taken back by the server some minutes later. Beside
it the holder keeps a name of the kernel's (an abstract socket), which is gone at once when the holder is, and
whatever becomes of the server: who gets the name knows that slots still marked as taken are nobody's, and
frees them; who does not get it waits, unless the limit was widened; who is refused a slot by a server that is
lost goes ahead with the name alone. A turn that was begun is never ended by a server that is lost: the lease
is renewed, or taken anew, when it is back.
"""

from __future__ import annotations

import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.client.schemas.responses import ConcurrencyLimitWithLeaseResponse
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError

LEASE_SECONDS = 120.0
"""After which the server takes a slot back whose holder is gone; Prefect's least is 60."""

PAUSE_SECONDS = 2.0
"""Between two questions whether a GPU is free."""

NAMES = sys.platform == "linux"
"""Whether the kernel has names that end with their process."""

_LOCKED, _GONE = 423, 410


def limit_name(gpu: str, host: str | None = None) -> str:
    """Name of the concurrency limit of a GPU.

    Parameters
    ----------
    gpu
        As ``CUDA_VISIBLE_DEVICES`` names it.
    host
        Name of its machine; None: this one.
    """
    # Prefect refuses some characters in names (/, %, &, >, <), which no host name should have.
    return f"i2am-gpu:{re.sub(r'[^A-Za-z0-9._-]', '-', host or socket.gethostname())}:{gpu}"


def ensure_limit(client: SyncPrefectClient, name: str) -> None:
    """Create the limit of a GPU, of one slot, where there is none; one that exists stays as it is.

    Parameters
    ----------
    client
        Of the server.
    name
        Of :func:`limit_name`.
    """
    with suppress(ObjectAlreadyExists):
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))


class Turn:
    """A turn on one GPU of this machine.

    Parameters
    ----------
    gpu
        As ``CUDA_VISIBLE_DEVICES`` names it.
    say
        Told once if the GPU has to be waited for.
    """

    def __init__(self, gpu: str, say: Callable[[str], None]) -> None:
        self._name, self._say = limit_name(gpu), say
        self._lease: UUID | None = None
        self._mark: socket.socket | None = None

    @contextmanager
    def held(self, over: threading.Event) -> Iterator[bool]:
        """Wait for the GPU and hold it for the block.

        Parameters
        ----------
        over
            When set, waiting ends.

        Yields
        ------
        bool
            Whether the GPU is ours; False if waiting was ended.
        """
        if not (ours := self._take()):
            self._say(f"waiting for {self._name}, which another sweep holds")
        while not ours and not over.wait(PAUSE_SECONDS):
            ours = self._take()
        if not ours:
            yield False
            return
        done = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(done,), daemon=True)
        keeper.start()
        try:
            yield True
        finally:
            done.set()
            keeper.join()
            self._give_back()

    def _take(self) -> bool:
        """Try once."""
        self._take_name()
        try:
            with get_client(sync_client=True) as client:
                ensure_limit(client, self._name)
                self._lease = self._ask(client)
                if self._lease is not None and self._mark is None and NAMES and self._single(client):
                    self._give_back()  # another has the GPU, of another server, or with a lease that ran out
        except Exception:  # noqa: BLE001 - of a server that is lost, which may say so in many ways
            return self._mark is not None or self._refused()
        return self._lease is not None or self._refused()

    def _single(self, client: SyncPrefectClient) -> bool:
        return client.read_global_concurrency_limit_by_name(self._name).limit == 1

    def _refused(self) -> bool:
        """The limit is closed, or someone has the GPU: leave the name to others."""
        self._unmark()
        return False

    def _ask(self, client: SyncPrefectClient) -> UUID | None:
        """Ask for a slot; None if all are taken by the living, or the limit is closed."""
        lease = _lease(client, self._name)
        if lease is None and self._mark is not None:  # those who had the slots are dead
            client.update_global_concurrency_limit(self._name, GlobalConcurrencyLimitUpdate(active_slots=0))
            lease = _lease(client, self._name)
        return lease

    def _keep(self, done: threading.Event) -> None:
        """Renew the lease, or take it anew, as long as the block lasts."""
        while not done.wait(LEASE_SECONDS / 4):
            with suppress(Exception), get_client(sync_client=True) as client:
                try:
                    if self._lease is not None:
                        client.renew_concurrency_lease(self._lease, LEASE_SECONDS)
                except PrefectHTTPStatusError as error:
                    if error.response.status_code == _GONE:  # the server forgot it
                        self._lease = None
                if self._lease is None:
                    self._lease = self._ask(client)

    def _give_back(self) -> None:
        if self._lease is not None:
            with suppress(Exception), get_client(sync_client=True) as client:
                client.release_concurrency_slots_with_lease(self._lease)
        self._lease = None
        self._unmark()

    def _take_name(self) -> None:
        """Take the kernel's name of the GPU, unless another process has it, or there are no such names."""
        if not NAMES:
            return
        mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            mark.bind(f"\0{self._name}")
        except OSError:
            mark.close()
        else:
            self._mark = mark

    def _unmark(self) -> None:
        if self._mark is not None:
            self._mark.close()
        self._mark = None


def _lease(client: SyncPrefectClient, name: str) -> UUID | None:
    """Lease a slot; None if all are taken."""
    try:
        answer = client.increment_concurrency_slots_with_lease([name], 1, "concurrency", LEASE_SECONDS)
    except PrefectHTTPStatusError as error:
        if error.response.status_code == _LOCKED:
            return None
        raise
    return ConcurrencyLimitWithLeaseResponse.model_validate(answer.json()).lease_id
