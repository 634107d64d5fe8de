"""Another user of this machine at the ports of a cluster that an analysis starts."""

from __future__ import annotations

import logging
import stat
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from i2am.analysis.dask_tasks import run_tasks
from i2am.flows.analyze.dask_cluster import computing
from i2am.flows.analyze.job_queue_cluster import needs_certificate
from i2am.flows.config.models import Computing
from i2am.storage.configuration.validate import override
from i2am.storage.errors import MissingDependency


def ports() -> list[int]:
    """Those on which we and our children listen."""
    me = psutil.Process()
    return [
        each.laddr.port
        for process in (me, *me.children(recursive=True))
        for each in process.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    ]


@pytest.mark.parametrize(
    "cluster",
    [
        "processes",
        {
            "class": "distributed.LocalCluster",
            "arguments": {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"},
        },
        pytest.param(
            {"class": "dask_jobqueue.local.LocalCluster"},  # jobs without a queue, which it does not wait for
            marks=pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
        ),
    ],
    ids=["processes", "class", "jobs"],
)
def test_a_cluster_runs_nothing_for_those_without_its_certificate(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from distributed import Client, default_client
    from distributed.security import Security

    if "jobqueue" in str(cluster):
        pytest.importorskip("dask_jobqueue")
    before = set(ports())
    monkeypatch.chdir(tmp_path)
    with computing(override(Computing(), cluster=cluster, workers=1)):
        for name in ("distributed.comm.tcp", "distributed.core"):
            monkeypatch.setattr(logging.getLogger(name), "disabled", True)
        assert run_tasks([dask.delayed(abs)(-3)]) == [3]
        own = default_client()
        address = own.scheduler.address
        assert address.startswith("tls://")
        assert all(worker.startswith("tls://") for worker in own.scheduler_info()["workers"])
        for place, security in (
            (address.replace("tls", "tcp"), None),
            (address, Security.temporary()),  # somebody else's certificate
        ):
            with pytest.raises(OSError):
                Client(place, security=security, timeout=3, set_as_default=False)
        for port in set(ports()) - before if cluster == "processes" else ():
            for path in ("info/main/logs.html", "json/counts.json", "metrics", "api/v1", "status"):
                with pytest.raises((urllib.error.URLError, ConnectionError)):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10)
        assert run_tasks([dask.delayed(abs)(-4)]) == [4]
        folders = [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()]
        assert folders == ([0o700] if "jobqueue" in str(cluster) else [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [{"security": None}, {"protocol": "tcp://"}, {"security": "of one's own"}]
)
def test_what_the_user_says_about_the_transport_of_jobs_stands(arguments: dict[str, Any]) -> None:
    make = pytest.importorskip("dask_jobqueue").SLURMCluster
    assert needs_certificate(make, {})
    assert not needs_certificate(make, arguments)
    with dask.config.set({"distributed.comm.tls.ca-file": "/etc/ca.pem"}):
        assert not needs_certificate(make, {})
    assert not needs_certificate(dict, {})


def test_without_the_package_for_certificates_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    before = ports()
    with (
        pytest.raises(MissingDependency, match=r"certificate.*pip install 'i2am\[flows\]', or use threads"),
        computing(override(Computing(), cluster="processes")),
    ):
        pass
    assert ports() == before
