"""Deployments on a Prefect server: work pools, and the flows of `i2am.flows.prefect.deployed_flows`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

from i2am.flows.prefect.deployed_flows import ANALYSIS, SWEEP, nightly_analysis, nightly_sweep
from i2am.flows.prefect.server import answers
from i2am.storage.errors import ConfigError, InputError


@dataclass(frozen=True, slots=True)
class Pools:
    """Work pools: ``gpu`` of captures, ``cpu`` of analyses."""

    gpu: str = "i2am-gpu"
    cpu: str = "i2am-cpu"


@dataclass(frozen=True, slots=True)
class Times:
    """When deployments run by themselves: cron expressions such as ``0 1 * * *``, or None.

    ``after_sweep`` runs the analysis whenever the sweep's flow run completes.
    """

    sweep: str | None = None
    analysis: str | None = None
    timezone: str = "UTC"
    after_sweep: bool = False

    def __post_init__(self) -> None:
        for cron in (self.sweep, self.analysis):
            self.schedules(cron)

    def schedules(self, cron: str | None) -> list[CronSchedule]:
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
    """A client of the server for the block; what the server refuses is raised as InputError."""
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
    """Create the work pools that are missing, of type process; returns their names."""
    made = []
    for name, what in ((pools.gpu, "captures: one worker on each GPU machine"), (pools.cpu, "analyses")):
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", description=f"I2AM {what}"))
        except ObjectAlreadyExists:
            continue
        made.append(name)
    return made


def deploy(
    api: str | None,
    pools: Pools,
    times: Times,
    config: Path | None = None,
    name: str | None = None,
    analysis: dict[str, str | None] | None = None,
) -> dict[str, Any]:
    """Bring the server up to date: work pools, the sweep of ``config``, and its analysis.

    Files are given as the worker sees them; ``analysis`` has ``out`` and ``config``. Returns what
    ``i2am deploy --json`` writes.
    """
    deployments: dict[str, str] = {}
    with on_server(api) as client:
        created = ensure_pools(client, pools)
        if config is not None:
            name, file = name or config.stem, str(config.resolve())
            sweep = _apply(nightly_sweep, name, pools.gpu, {"config": file}, times.schedules(times.sweep))
            deployments[f"{SWEEP}/{name}"] = sweep
            if analysis is not None:
                parameters = {"run": file, **analysis}
                schedules = times.schedules(times.analysis)
                triggers = [_after(sweep, name)] if times.after_sweep else []
                made = _apply(nightly_analysis, name, pools.cpu, parameters, schedules, triggers)
                deployments[f"{ANALYSIS}/{name}"] = made
    return {"server": api, "pools": [pools.gpu, pools.cpu], "created": created, "deployments": deployments}


def _after(sweep: str, name: str) -> DeploymentEventTrigger:
    return DeploymentEventTrigger(
        name=f"{ANALYSIS}/{name} after {SWEEP}/{name}",
        expect={"prefect.flow-run.Completed"},
        match_related={
            "prefect.resource.id": f"prefect.deployment.{sweep}",
            "prefect.resource.role": "deployment",
        },
    )


def _apply(
    flow: Flow[Any, Any],
    name: str,
    pool: str,
    parameters: Mapping[str, str | None],
    schedules: Sequence[CronSchedule],
    triggers: Sequence[DeploymentEventTrigger] = (),
) -> str:
    """Create or replace one deployment; returns its id."""
    deployment = RunnerDeployment.from_flow(
        flow,
        name=name,
        work_pool_name=pool,
        parameters=dict(parameters),
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
