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

from i2am.flows.analyze.dask_report import check_report, performance_report
from i2am.flows.analyze.local_cluster import local_cluster
from i2am.flows.config.models import Address, Computing, Processes, Threads
from i2am.flows.console.output import one_line
from i2am.storage.errors import ClusterError, ConfigError, I2AMError, MissingDependency, NotFound

if TYPE_CHECKING:
    from distributed import Client

PROCESSES_TIMEOUT = 60.0
"""Seconds in which a worker process of this machine must be there; it takes about one."""


@contextmanager
def computing(where: Computing, overwrite: bool = False) -> Iterator[None]:
    """Run the Dask work of the block where the configuration says; everything is closed at its end.

    `overwrite` lets Dask's report replace a file that is no such report. Raises ClusterError if the cluster
    does not start or answer in time or is lost, or if its workers lack this version of the package.
    """
    import dask

    if where.report_dask is not None:
        check_report(where.report_dask, overwrite)
    with ExitStack() as stack:
        if isinstance(where.cluster, Threads) and where.report_dask is None:
            stack.enter_context(dask.config.set(scheduler="threads", num_workers=where.workers))
        else:
            client = stack.enter_context(_client(where))
            stack.enter_context(_explain_losses(client))
            _check_workers(client)
            if where.report_dask is not None:
                stack.enter_context(performance_report(where.report_dask, client))
        yield


@contextmanager
def _client(where: Computing) -> Iterator[Client]:
    """A client of the cluster, with a worker that is ready."""
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
        parts = ["client", "scheduler"]  # their errors are raised: no tracebacks on the terminal
        if isinstance(cluster, Processes):
            parts.append("comm")  # a handshake that a busy or dying process breaks off is begun again
        for part in parts:
            logger = logging.getLogger(f"distributed.{part}")
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        if isinstance(cluster, Address):
            place: Any = cluster.address or _scheduler_address(cluster)
        else:
            place = stack.enter_context(local_cluster(cluster, where.workers))
        try:
            if isinstance(place, str):
                _handshake(place, timeout)
            client = stack.enter_context(Client(place, timeout=timeout))
        except (OSError, ValueError) as error:  # ValueError: a protocol that Dask does not speak
            raise ClusterError(
                f"no Dask scheduler answers at {place if isinstance(place, str) else 'the cluster'}",
                expected=f"an answer within {timeout:g} s",
                got=one_line(error),
                remedy="check the address, and that the scheduler runs; or set cluster.timeout",
            ) from error
        try:
            client.wait_for_workers(1, timeout=timeout)
        except TimeoutError as error:
            raise ClusterError(
                f"the Dask cluster at {client.scheduler.address} has no worker",
                expected=f"at least one within {timeout:g} s",
                got="none",
                remedy="start workers, ask for some with workers, or set cluster.timeout; for jobs, "
                "look at the queue, and at their logs by cluster.arguments.log_directory",
            ) from error
        yield client


def _scheduler_address(cluster: Address) -> str:
    """The address in a scheduler file, which the scheduler may still have to write."""
    path = Path(str(cluster.scheduler_file))
    end = time.monotonic() + cluster.timeout
    while not path.is_file():
        if time.monotonic() > end:
            raise NotFound(
                f"scheduler file {path} does not exist",
                expected=f"what `dask scheduler --scheduler-file` writes, within {cluster.timeout:g} s",
                remedy="check the path, and that the scheduler runs",
            )
        time.sleep(0.1)
    try:
        return str(json.loads(path.read_bytes())["address"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"scheduler file {path}",
            expected="JSON with an address, as `dask scheduler` writes it",
            got=one_line(error),
            remedy="name the right file, or the address itself",
        ) from error


def _handshake(address: str, timeout: float) -> None:
    """Connect once: OSError if nobody answers in time, where `Client` would wait without end."""
    from distributed.comm import connect
    from distributed.security import Security

    async def shake() -> None:
        arguments = Security().get_connection_args("client")
        comm = await asyncio.wait_for(connect(address, timeout=timeout, **arguments), timeout)
        comm.abort()

    with ThreadPoolExecutor(1) as other_thread:  # this one may have an event loop that runs
        other_thread.submit(lambda: asyncio.run(shake())).result()


def _check_workers(client: Client) -> None:
    """Refuse workers that cannot run this package, or have another version of it."""
    from i2am.analysis.dask_tasks import kernel_version
    from i2am.analysis.reduction.softmax import KERNEL_VERSION

    answers = client.run(kernel_version, on_error="return").values()
    found = {answer for answer in answers if not isinstance(answer, OSError)}  # OSError: lost just now
    install = "install i2am on the workers, in the version that is used here"
    for error in found:
        if isinstance(error, Exception):
            raise ClusterError(
                "the workers of the Dask cluster cannot run this package", got=one_line(error), remedy=install
            ) from error
    if not found:
        raise ClusterError("the workers of the Dask cluster were lost", remedy="start some and run again")
    if found != {KERNEL_VERSION}:
        raise ClusterError(
            "the workers of the Dask cluster have another version of this package",
            expected=f"kernel version {KERNEL_VERSION}",
            got=", ".join(map(str, sorted(found))),
            remedy=install,
        )


@contextmanager
def _explain_losses(client: Client) -> Iterator[None]:
    """Turn a lost scheduler, and a task that every worker died of, into errors of one line."""
    from distributed.comm import CommClosedError
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
        if client.status == "running" and not isinstance(error, CommClosedError):
            raise  # a closed connection may be noticed before the client's status changes
        raise ClusterError(
            "the Dask scheduler was lost",
            got=one_line(error),
            remedy="start it and run again: finished marginals are kept",
        ) from error
