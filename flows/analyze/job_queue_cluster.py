"""Dask clusters whose workers are jobs of a queueing system (SLURM and others, through dask-jobqueue)."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

JOB: Mapping[str, Any] = {
    "cores": 1,
    "memory": "2GB",
    "processes": 1,
    "scheduler_options": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
}
"""Where neither the arguments nor Dask's own configuration say more: see docs/clusters.md."""

NO_LOG = "--output=/dev/null"
"""For sbatch, which would leave a file for each job where the command was started."""

RENEW_SECONDS = 5.0
"""Seconds between two looks whether a job has to be submitted again."""


def job_arguments(make: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a cluster class, with defaults added if it is one of dask-jobqueue's."""
    import dask

    job = _kind_of_job(make)
    if job is None:
        return dict(arguments)
    name = arguments.get("config_name", job)

    def given(option: str) -> bool:
        """Whether the arguments or ``jobqueue.yaml`` have it."""
        return option in arguments or bool(dask.config.get(f"jobqueue.{name}.{option}", None))

    found = {**{key: value for key, value in JOB.items() if not given(key)}, **arguments}
    if job == "slurm" and not (given("log_directory") or given("job_extra_directives")):
        found["job_extra_directives"] = [NO_LOG]
    return found


def _kind_of_job(make: Callable[..., Any]) -> str | None:
    return getattr(getattr(make, "job_cls", None), "config_name", None)


def needs_certificate(make: Callable[..., Any], arguments: Mapping[str, Any]) -> bool:
    """Whether a class of dask-jobqueue is told nothing of TLS, here or by Dask's configuration."""
    import dask

    told = "security" in arguments or "protocol" in arguments
    return not told and _kind_of_job(make) is not None and not dask.config.get("distributed.comm.tls.ca-file")


@contextmanager
def certificate_files(certificate: Any) -> Iterator[Any]:
    """A certificate in a folder that this user's jobs alone can read, below the working directory."""
    from distributed.security import Security

    with tempfile.TemporaryDirectory(prefix=".i2am-tls-", dir=os.getcwd()) as folder:
        files = {}
        for role in ("scheduler", "worker", "client"):
            for name, text in certificate.get_tls_config_for_role(role).items():
                if text is not None and "\n" in text:
                    path = os.path.join(folder, f"{role}-{name}")
                    Path(path).write_text(text)
                    files["tls_ca_file" if name == "ca_file" else f"tls_{role}_{name}"] = path
        yield Security(require_encryption=True, **files)


@contextmanager
def sigint_restored() -> Iterator[None]:
    """Restore the handler of Ctrl-C: dask-jobqueue, once imported, makes it exit at once with status 0."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is not before:
            signal.signal(signal.SIGINT, before)


@contextmanager
def worker_count(cluster: Any, workers: int) -> Iterator[None]:
    """Keep a cluster at `workers` during the block: jobs that end with their node or time are replaced."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEW_SECONDS):
            with suppress(Exception):  # the queue may answer the next time
                cluster.scale(workers)

    thread = threading.Thread(target=renew, name="i2am-workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
