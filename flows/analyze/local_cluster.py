"""Dask clusters that are started for an analysis and closed after it: worker processes, or a class's own."""

from __future__ import annotations

import importlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from i2am.flows.analyze.job_queue_cluster import (
    certificate_files,
    job_arguments,
    needs_certificate,
    sigint_restored,
    worker_count,
)
from i2am.flows.config.models import SLURM, ClusterClass, Processes, Threads
from i2am.flows.console.output import one_line
from i2am.storage.errors import ClusterError, ConfigError, MissingDependency, UnknownName

NO_PAGES: dict[str, list[str]] = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.nanny.http.routes": [],
}
"""Dask's configuration: the ports for HTTP, which every user of this machine reaches, serve nothing."""

NO_DASHBOARD = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
"""The scheduler opens a port for HTTP in any case: here a free one, on this machine alone."""

IGNORE_SIGINT = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""Run by worker processes as they start: Ctrl-C reaches this process, which closes them."""


@contextmanager
def local_cluster(cluster: Threads | Processes | ClusterClass, workers: int | None) -> Iterator[Any]:
    """Start a Dask cluster with as many threads, processes or jobs, and close it at the end of the block.

    Threads are one worker in this process, for the report that only a scheduler can make. Without `workers`
    there is one for each core, or what the class has.
    """
    import dask

    make, arguments = _constructor(cluster, workers)
    with ExitStack() as stack:
        if isinstance(cluster, Processes):
            stack.callback(_purge_scratch)
        if needs_certificate(make, arguments):
            arguments["security"] = stack.enter_context(certificate_files(_certificate()))
        try:
            with (
                warnings.catch_warnings(),
                dask.config.set({} if isinstance(cluster, ClusterClass) else NO_PAGES),
            ):
                warnings.filterwarnings("ignore", message="Port .* is already in use")  # of a dashboard
                started = make(**arguments)
            stack.callback(started.close)
            if isinstance(cluster, ClusterClass) and workers is not None:
                started.scale(workers)
                stack.enter_context(worker_count(started, workers))
        except Exception as error:
            root: BaseException = error
            while (deeper := root.__cause__ or root.__context__) is not None:
                root = deeper  # Dask says that a nanny failed; the reason is the first error of the chain
            raise ClusterError(
                f"{make.__name__} does not start",
                got=one_line(root),
                remedy="correct workers and cluster.arguments",
            ) from error
        yield started


def _purge_scratch() -> None:
    """Remove the folders of workers that were killed, as Dask itself does when the next worker starts."""
    import dask
    from distributed.diskutils import WorkSpace

    place = dask.config.get("temporary-directory", None) or tempfile.gettempdir()
    WorkSpace(os.path.join(place, "dask-scratch-space")).new_work_dir(prefix="worker-").release()


def _constructor(
    cluster: Threads | Processes | ClusterClass, workers: int | None
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The class of a cluster, and its arguments."""
    from dask.system import CPU_COUNT
    from distributed import LocalCluster

    count = workers or CPU_COUNT
    if isinstance(cluster, ClusterClass):
        make = _cluster_class(cluster.class_name)
        own = {"security": _certificate()} if make is LocalCluster else {}
        return make, own | job_arguments(make, cluster.arguments)
    if isinstance(cluster, Processes):
        own = {
            "n_workers": count,
            "threads_per_worker": cluster.threads_per_worker,
            "preload": [IGNORE_SIGINT],
            "security": _certificate(),
        }
    else:
        own = {"n_workers": 1, "threads_per_worker": count, "processes": False, "memory_limit": None}
    return LocalCluster, NO_DASHBOARD | own


def _certificate() -> Any:
    """A key and certificate for this cluster alone: without them no other user can talk to its scheduler."""
    from distributed.security import Security

    try:
        return Security.temporary()
    except ImportError as error:
        raise MissingDependency(
            "worker processes need a certificate, so that no other user runs code in them",
            got=one_line(error),
            remedy="pip install 'i2am[flows]', or use threads",
        ) from error


def _cluster_class(name: str) -> Callable[..., Any]:
    """Import a cluster class by its dotted name."""
    path, _, last = name.rpartition(".")
    try:
        with sigint_restored():
            module = importlib.import_module(path)
    except Exception as error:
        jobs = path.partition(".")[0] == SLURM.partition(".")[0]
        raise ConfigError(
            f"cluster class {name!r}",
            expected="a module that can be imported",
            got=one_line(error),
            remedy="pip install 'i2am[slurm]'" if jobs else "correct the name, or install the package",
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
