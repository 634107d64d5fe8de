"""The Dask scheduler of an analysis: threads, worker processes, or any cluster, by address or by class."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2am.flows.analyze.dask_report import check_report, reported
from i2am.flows.analyze.local_cluster import first_line, own_cluster
from i2am.flows.config.models import Address, Computing, Threads
from i2am.storage.errors import ClusterError, ConfigError, I2AMError, MissingDependency, NotFound

if TYPE_CHECKING:
    from distributed import Client

PROCESSES_TIMEOUT = 60.0
"""Seconds in which a worker process of this machine must be there; it takes about one."""

POLL_SECONDS = 0.1
"""Seconds between two looks for a scheduler file."""


@contextmanager
def computing(where: Computing, overwrite: bool = False) -> Iterator[None]:
    """Run the Dask work of the block where the configuration says; everything is closed at its end.

    Parameters
    ----------
    where
        Cluster, workers, and the place of Dask's performance report.
    overwrite
        Replace a file at that place that is no such report.

    Raises
    ------
    ConfigError, UnknownName, MissingDependency
        If there is no such class, or it does not take the arguments.
    ClusterError
        If the cluster does not start or answer in time, or is lost; if its workers lack this package.
    AlreadyExists, NotFound, NoPermission
        If the report cannot be written.
    """
    import dask

    cluster = where.cluster
    if where.report_dask is not None:
        check_report(where.report_dask, overwrite)
    with ExitStack() as stack:
        if isinstance(cluster, Threads) and where.report_dask is None:
            stack.enter_context(dask.config.set(scheduler="threads", num_workers=where.workers))
        else:
            client = stack.enter_context(_client(where))
            stack.enter_context(_losses_explained(client))
            _check_workers(client)
            if where.report_dask is not None:
                stack.enter_context(reported(where.report_dask, client))
        yield


@contextmanager
def _client(where: Computing) -> Iterator[Client]:
    """A client of the cluster that is asked for, with a worker that is ready."""
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingDependency(
            f"cluster {where.cluster.kind!r} and --report-dask need dask.distributed",
            got=str(error),
            remedy="pip install 'i2am[flows]', or use threads without a report",
        ) from error

    cluster = where.cluster
    timeout = getattr(cluster, "timeout", PROCESSES_TIMEOUT)
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        if isinstance(cluster, Address):
            place: Any = cluster.address or _scheduler_address(cluster)
        else:
            place = stack.enter_context(own_cluster(cluster, where.workers))
        try:
            if isinstance(place, str):
                _knock(place, timeout)
            client = stack.enter_context(Client(place, timeout=timeout))
        except (OSError, ValueError) as error:  # ValueError: a protocol that Dask does not speak
            raise ClusterError(
                f"no Dask scheduler answers at {place if isinstance(place, str) else 'the cluster'}",
                expected=f"an answer within {timeout:g} s",
                got=first_line(error),
                remedy="check the address, and that the scheduler runs; or set cluster.timeout",
            ) from error
        _await_worker(client, timeout)
        yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's tracebacks off the terminal: what its client and its scheduler meet is an error of ours."""
    loggers = [logging.getLogger(f"distributed.{part}") for part in ("client", "scheduler")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _scheduler_address(cluster: Address) -> str:
    """Read the address from a scheduler file, which may have to be written yet."""
    path = Path(str(cluster.scheduler_file))
    end = time.monotonic() + cluster.timeout
    while not path.is_file():
        if time.monotonic() > end:
            raise NotFound(
                f"scheduler file {path} does not exist",
                expected=f"what `dask scheduler --scheduler-file` writes, within {cluster.timeout:g} s",
                remedy="check the path, and that the scheduler runs",
            )
        time.sleep(POLL_SECONDS)
    try:
        return str(json.loads(path.read_bytes())["address"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"scheduler file {path}",
            expected="JSON with an address, as `dask scheduler` writes it",
            got=first_line(error),
            remedy="name the right file, or the address itself",
        ) from error


def _knock(address: str, timeout: float) -> None:
    """Shake hands with a scheduler; `Client` would wait for ever for one that listens and says nothing.

    Raises
    ------
    OSError
        If there is no handshake in time.
    """
    from distributed.comm import connect
    from distributed.security import Security

    async def shake() -> None:
        arguments = Security().get_connection_args("client")
        comm = await asyncio.wait_for(connect(address, timeout=timeout, **arguments), timeout)
        comm.abort()

    with ThreadPoolExecutor(1) as elsewhere:  # this thread may have an event loop that runs
        elsewhere.submit(lambda: asyncio.run(shake())).result()


def _await_worker(client: Client, timeout: float) -> None:
    try:
        client.wait_for_workers(1, timeout=timeout)
    except TimeoutError as error:
        raise ClusterError(
            f"the Dask cluster at {client.scheduler.address} has no worker",
            expected=f"at least one within {timeout:g} s",
            got="none",
            remedy="start workers, ask for some with workers, or set cluster.timeout; of jobs, look at the "
            "queue, and at their logs by cluster.arguments.log_directory",
        ) from error


def _check_workers(client: Client) -> None:
    """Refuse workers that would compute something else, or nothing."""
    from i2am.analysis.dask_tasks import kernel_version
    from i2am.analysis.reduction.softmax import KERNEL_VERSION

    answers = client.run(kernel_version, on_error="return").values()
    found = {answer for answer in answers if not isinstance(answer, OSError)}  # one that was lost just now
    for error in found:
        if isinstance(error, Exception):
            raise ClusterError(
                "the workers of the Dask cluster cannot run this package",
                got=f"{type(error).__name__}: {first_line(error)}",
                remedy="install i2am on the workers, in the version that is used here",
            ) from error
    if not found:
        raise ClusterError("the workers of the Dask cluster were lost", remedy="start some and run again")
    if found != {KERNEL_VERSION}:
        raise ClusterError(
            "the workers of the Dask cluster have another version of this package",
            expected=f"kernel version {KERNEL_VERSION}",
            got=", ".join(map(str, sorted(found))),
            remedy="install i2am on the workers, in the version that is used here",
        )


@contextmanager
def _losses_explained(client: Client) -> Iterator[None]:
    """Say in one line that the scheduler has gone, or that work has cost worker after worker."""
    from distributed.scheduler import KilledWorker

    try:
        yield
    except I2AMError:
        raise
    except KilledWorker as error:
        raise ClusterError(
            "a task of the analysis ended every worker that ran it",
            got=f"workers lost: {error.allowed_failures + 1}",
            remedy="give each worker more memory; see its log",
        ) from error
    except Exception as error:
        if client.status == "running":
            raise
        raise ClusterError(
            "the Dask scheduler was lost",
            got=f"{type(error).__name__}: {first_line(error)}",
            remedy="start it and run again: finished marginals are kept",
        ) from error
