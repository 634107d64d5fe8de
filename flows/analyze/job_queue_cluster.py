"""Dask clusters whose workers are jobs of a queueing system (SLURM and others, through dask-jobqueue)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

JOB: Mapping[str, Any] = {"cores": 1, "memory": "2GB", "processes": 1}
"""A job where neither the arguments nor Dask's own configuration say more: see docs/clusters.md."""

QUIET = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
"""Options of the scheduler, which runs in this process."""

NO_LOG = "--output=/dev/null"
"""For sbatch, which would leave a file for each job where the command was started."""

RENEW_SECONDS = 5.0
"""Seconds between two looks whether a job has to be handed in again."""


def completed(make: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Add what a class of job queues needs and was not told.

    Parameters
    ----------
    make
        A class of Dask clusters; one that is not of dask-jobqueue gets its arguments as they are.
    arguments
        Of the configuration.

    Returns
    -------
    dict
        Arguments that the class can be called with.
    """
    import dask

    job = getattr(getattr(make, "job_cls", None), "config_name", None)
    if job is None:
        return dict(arguments)
    name = arguments.get("config_name", job)

    def told(option: str) -> bool:
        """Whether the arguments or ``jobqueue.yaml`` have it."""
        return option in arguments or bool(dask.config.get(f"jobqueue.{name}.{option}", None))

    found = {**{key: value for key, value in JOB.items() if not told(key)}, **arguments}
    if not told("scheduler_options"):
        found["scheduler_options"] = dict(QUIET)
    if job == "slurm" and not (told("log_directory") or told("job_extra_directives")):
        found["job_extra_directives"] = [NO_LOG]
    return found


@contextmanager
def signals_kept() -> Iterator[None]:
    """Undo what an import does to Ctrl-C: dask-jobqueue makes it leave at once, with the status 0."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is not before:
            signal.signal(signal.SIGINT, before)


@contextmanager
def kept_at(cluster: Any, workers: int) -> Iterator[None]:
    """Replace workers that the cluster loses during the block, as jobs end with their node or their time.

    Parameters
    ----------
    cluster
        Any Dask cluster; asking for as many workers as it has changes nothing.
    workers
        How many it shall have.
    """
    over = threading.Event()

    def keep() -> None:
        """Ask again and again."""
        while not over.wait(RENEW_SECONDS):
            with suppress(Exception):  # the next time may be better; the analysis itself has patience
                cluster.scale(workers)

    thread = threading.Thread(target=keep, name="i2am-workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
