"""Deployments on a Prefect server: work pools, concurrency limits, and the flows of `i2am.flows.prefect.deployed_flows`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from i2am.flows.config.load_yaml import load_capture
from i2am.flows.prefect.deployed_flows import ANALYSIS, SWEEP, nightly_analysis, nightly_sweep
from i2am.flows.prefect.server import answers
from i2am.flows.sweep.gpu_lease import ensure_limit, limit_name
from i2am.storage.errors import ConfigError, InputError


@dataclass(frozen=True, slots=True)
class Pools:
    """Work pools: ``gpu`` of captures, ``cpu`` of analyses."""

    gpu: str = "i2am-gpu"
    cpu: str = "i2am-cpu"


@dataclass(frozen=True, slots=True)
class Times:
    """When deployments run by themselves.

    Attributes
    ----------
    sweep, analysis
        Cron expressions, such as ``0 1 * * *``; None: only when asked.
    timezone
        In which they are read.
    after_sweep
        Run the analysis whenever the sweep's flow run completes.

    Raises
    ------
    ConfigError
        If an expression or the time zone is none.
    """

    sweep: str | None = None
    analysis: str | None = None
    timezone: str = "UTC"
    after_sweep: bool = False

    def __post_init__(self) -> None:
        for cron in (self.sweep, self.analysis):
            self.schedules(cron)

    def schedules(self, cron: str | None) -> list[CronSchedule]:
        """The schedule of a cron expression, or none."""
        try:
            return [CronSchedule(cron=cron, timezone=self.timezone)] if cron is not None else []
        except ValidationError as error:
            raise ConfigError(
                f"schedule {cron!r}, timezone {self.timezone!r}",
                expected="five fields such as '0 1 * * *' (one at night), and a zone such as Europe/Berlin",
                got=error.errors()[0]["msg"].removeprefix("Value error, "),
            ) from error


@contextmanager
def on_server(api: str | None) -> Iterator[SyncPrefectClient]:
    """Speak to the server for the block.

    Parameters
    ----------
    api
        URL of the server.

    Raises
    ------
    InputError
        If there is none, if it does not answer, or if it refuses something.
    """
    if not api:
        raise InputError(
            "a deployment needs a Prefect server",
            expected="its URL in PREFECT_API_URL",
            got="nothing",
            remedy="prefect server start, then export PREFECT_API_URL=http://127.0.0.1:4200/api",
        )
    if not answers(api):
        raise InputError(
            f"no Prefect server answers at {api}",
            remedy="start it with prefect server start, or correct PREFECT_API_URL",
        )
    try:
        with get_client(sync_client=True) as client:
            yield client
    except (httpx.TransportError, PrefectHTTPStatusError) as error:
        raise InputError(f"the Prefect server at {api} refused", got=str(error)) from error


def ensure_pools(client: SyncPrefectClient, pools: Pools) -> list[str]:
    """Create the work pools that are missing, of type process.

    Parameters
    ----------
    client
        Of the server.
    pools
        Their names; one that exists stays as it is, whatever its type.

    Returns
    -------
    list of str
        Those that were created.
    """
    made = []
    for name, what in ((pools.gpu, "captures: one worker on each GPU machine"), (pools.cpu, "analyses")):
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", description=f"I2AM {what}"))
        except ObjectAlreadyExists:
            continue
        made.append(name)
    return made


def ensure_limits(client: SyncPrefectClient, gpus: Sequence[str | int], host: str | None) -> list[str]:
    """Create the concurrency limits of some GPUs, of one slot each, where they are missing.

    Parameters
    ----------
    client
        Of the server.
    gpus
        As ``CUDA_VISIBLE_DEVICES`` names them.
    host
        Name of the worker's machine; None: this one.

    Returns
    -------
    list of str
        Their names.
    """
    names = [limit_name(str(gpu), host) for gpu in gpus]
    for name in names:
        ensure_limit(client, name)
    return names


def deploy_sweep(config: Path, name: str, pools: Pools, times: Times) -> str:
    """Create the deployment of a sweep, or bring it up to date.

    Parameters
    ----------
    config
        File of the capture's configuration, as the worker sees it; checked now, and read by every run.
    name
        Of the deployment.
    pools, times
        Where and when it runs.

    Returns
    -------
    str
        Id of the deployment.
    """
    load_capture(config)
    parameters = {"config": str(config.resolve())}
    return _apply(nightly_sweep, name, pools.gpu, parameters, times.schedules(times.sweep))


def deploy_analysis(
    parameters: dict[str, Any], name: str, pools: Pools, times: Times, sweep_id: str | None = None
) -> str:
    """Create the deployment of an analysis, or bring it up to date.

    Parameters
    ----------
    parameters
        Of :func:`i2am.flows.prefect.deployed_flows.nightly_analysis`.
    name
        Of the deployment.
    pools, times
        Where and when it runs.
    sweep_id
        Id of the deployment after whose runs it runs, where `times` says so.

    Returns
    -------
    str
        Id of the deployment.
    """
    triggers = []
    if times.after_sweep:
        triggers = [
            DeploymentEventTrigger(
                name=f"{ANALYSIS}/{name} after {SWEEP}/{name}",
                expect={"prefect.flow-run.Completed"},
                match_related={
                    "prefect.resource.id": f"prefect.deployment.{sweep_id}",
                    "prefect.resource.role": "deployment",
                },
            )
        ]
    return _apply(nightly_analysis, name, pools.cpu, parameters, times.schedules(times.analysis), triggers)


def _apply(
    flow: Flow[Any, Any],
    name: str,
    pool: str,
    parameters: dict[str, Any],
    schedules: Sequence[CronSchedule],
    triggers: Sequence[DeploymentEventTrigger] = (),
) -> str:
    """Create or update one deployment: it is then what is said here, whatever it was before."""
    deployment = RunnerDeployment.from_flow(
        flow,
        name=name,
        work_pool_name=pool,
        parameters=parameters,
        schedules=list(schedules),
        triggers=list(triggers),
        # A run that is due while the one before is at work waits for it: two would share samples.
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
        ),
        entrypoint_type=EntrypointType.MODULE_PATH,
        description=(flow.description or "").splitlines()[0],
        tags=["i2am"],
    )
    return str(deployment.apply())
