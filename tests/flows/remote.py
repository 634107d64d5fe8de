"""A Dask cluster that somebody else runs, as processes; traps for workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from i2am.analysis.reduction.softmax import KERNEL_VERSION
from i2am.flows.subprocesses import child
from tests.flows.conftest import ROOT

FREE = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")


@dataclass
class Cluster:
    """Addresses and processes."""

    file: Path
    scheduler: subprocess.Popen[str]
    workers: list[subprocess.Popen[str]] = field(default_factory=list)
    more: Callable[[], subprocess.Popen[str]] | None = None

    def alive(self) -> list[subprocess.Popen[str]]:
        """Workers that run."""
        return [worker for worker in self.workers if worker.poll() is None]


@contextmanager
def foreign_cluster(folder: Path, workers: int, pythonpath: Path = ROOT) -> Iterator[Cluster]:
    """Run a scheduler and workers without nannies, in a working directory of their own."""
    folder.mkdir()
    env = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    env |= {"PYTHONPATH": str(pythonpath), "OMP_NUM_THREADS": "2", "PWD": str(folder)}
    # The workers' own working directory: relative paths of the analysis mean nothing there.
    here = [sys.executable, "-c", f"import os, runpy, sys; os.chdir({str(folder)!r}); sys.path[0] = ''; "
            "runpy.run_module('dask', run_name='__main__')"]  # fmt: skip
    file = folder / "scheduler.json"
    common = ("--scheduler-file", str(file))
    with ExitStack() as stack:
        command = [*here, "scheduler", *FREE, *common]
        cluster = Cluster(file, stack.enter_context(child(command, env=env, quiet=True)))
        end = time.monotonic() + 30
        while not file.exists():
            assert time.monotonic() < end, "the scheduler did not start"
            time.sleep(0.05)
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(folder)]
        cluster.more = lambda: stack.enter_context(
            child([*here, "worker", *common, *options], env=env, quiet=True)
        )
        for _ in range(workers):
            add_worker(cluster)
        yield cluster


def add_worker(cluster: Cluster) -> None:
    """Start one more worker."""
    assert cluster.more is not None
    cluster.workers.append(cluster.more())


def die_at(name: str) -> None:
    """Set a trap in this process: the next call of a function of `os` is its end."""
    setattr(os, name, lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL))


def break_package(harm: str) -> None:
    """Let this process "lack" the package, or have one of another "age"; no harm: mend it."""
    import i2am.analysis.reduction.softmax

    for module in [name for name in sys.modules if name == "i2am.analysis.dask_tasks"]:
        del sys.modules[module]
    if harm == "lack":
        sys.modules["i2am.analysis.dask_tasks"] = None  # type: ignore[assignment]
    i2am.analysis.reduction.softmax.KERNEL_VERSION = -1 if harm == "age" else KERNEL_VERSION


def state_of_worker() -> dict[str, Any]:
    """What a worker process has loaded, and its BLAS threads outside and inside the kernel."""
    from threadpoolctl import threadpool_info

    from i2am.analysis.reduction.blas_threads import one_blas_thread

    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"]]

    outside = threads()
    with one_blas_thread():
        inside = threads()
    heavy = {"torch", "diffusers", "transformers", "prefect"}
    return {"loaded": sorted(heavy & set(sys.modules)), "outside": outside, "inside": inside}
