"""Dask clusters that are started for an analysis and closed after it: worker processes, or a class's own."""

from __future__ import annotations

import importlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from i2am.flows.analyze.job_queue_cluster import completed, kept_at, signals_kept
from i2am.flows.config.models import QUEUES, ClusterClass, Processes, Threads
from i2am.storage.errors import ClusterError, ConfigError, UnknownName

NO_DASHBOARD = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
"""The scheduler opens a port for HTTP in any case: here a free one, on this machine alone."""

DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""Run by our worker processes as they start: Ctrl-C reaches this process, which closes them."""


@contextmanager
def own_cluster(cluster: Threads | Processes | ClusterClass, workers: int | None) -> Iterator[Any]:
    """Start a cluster, ask it for workers, and close it at the end of the block.

    Parameters
    ----------
    cluster
        Which kind; threads are one worker inside this process, for the report that only a scheduler can make.
    workers
        Threads, processes or jobs; None: one for each core, or what the class has.

    Yields
    ------
    Cluster
        Of Dask.

    Raises
    ------
    ConfigError, UnknownName
        If there is no such class.
    ClusterError
        If it does not start.
    """
    started = _start(cluster, workers)
    try:
        if isinstance(cluster, ClusterClass) and workers is not None:
            with kept_at(started, workers):
                yield started
        else:
            yield started
    finally:
        started.close()
        if isinstance(cluster, Processes):
            _purge_scratch()


def _purge_scratch() -> None:
    """Remove the folders of workers that were killed, as Dask itself does when the next worker starts."""
    import dask
    from distributed.diskutils import WorkSpace

    place = dask.config.get("temporary-directory", None) or tempfile.gettempdir()
    WorkSpace(os.path.join(place, "dask-scratch-space")).new_work_dir(prefix="worker-").release()


def _start(cluster: Threads | Processes | ClusterClass, workers: int | None) -> Any:
    """Start a cluster of our own, and ask it for workers."""
    from dask.system import CPU_COUNT
    from distributed import LocalCluster

    make: Callable[..., Any] = LocalCluster
    arguments: dict[str, Any] = {"n_workers": workers or CPU_COUNT, **NO_DASHBOARD}
    if isinstance(cluster, ClusterClass):
        make = _find(cluster.class_name)
        arguments = completed(make, cluster.arguments)
    elif isinstance(cluster, Processes):
        arguments |= {"threads_per_worker": cluster.threads_per_worker, "preload": [DEAF]}
    else:  # for the report that only such a scheduler can make: one worker, in this process
        arguments |= {"n_workers": 1, "threads_per_worker": workers or CPU_COUNT}
        arguments |= {"processes": False, "memory_limit": None}
    started: Any = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Port .* is already in use")  # of a dashboard
            started = make(**arguments)
        if isinstance(cluster, ClusterClass) and workers is not None:
            started.scale(workers)
    except Exception as error:
        if started is not None:
            started.close()
        root: BaseException = error
        while (deeper := root.__cause__ or root.__context__) is not None:
            root = deeper  # Dask says that a nanny failed; the reason stands below
        raise ClusterError(
            f"{make.__name__} does not start",
            got=f"{type(root).__name__}: {first_line(root)}",
            remedy="correct workers and cluster.arguments",
        ) from error
    return started


def _find(name: str) -> Callable[..., Any]:
    """Import a cluster class by its dotted name."""
    path, _, last = name.rpartition(".")
    try:
        with signals_kept():
            module = importlib.import_module(path)
    except Exception as error:
        queues = path.partition(".")[0] == QUEUES
        raise ConfigError(
            f"cluster class {name!r}",
            expected="a module that can be imported",
            got=f"{type(error).__name__}: {first_line(error)}",
            remedy="pip install 'i2am[slurm]'" if queues else "correct the name, or install the package",
        ) from error
    found = getattr(module, last, None)
    if found is None:
        known = [each for each in dir(module) if each.endswith("Cluster")]
        raise UnknownName(f"class of module {path!r}", last, known)
    if not isinstance(found, type) or not all(hasattr(found, part) for part in ("scale", "close")):
        raise ConfigError(
            f"cluster class {name!r}",
            expected="a class of Dask clusters, such as distributed.LocalCluster",
            got=repr(found),
        )
    return found


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class where there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
