"""``i2am deploy``: sweeps and analyses that a Prefect server starts and its workers run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import AsJson
from flows.terminal import emit, say
from storage.errors import ConfigError


def deploy(
    config: Annotated[
        Path | None, typer.Argument(help="Configuration (YAML) of the capture; absent: work pools alone.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the deployments; absent: the file's name.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="When the sweep runs: a cron expression such as '0 1 * * *'.")
    ] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of the schedules.")] = "UTC",
    analysis_out: Annotated[
        str | None, typer.Option(help="Deploy an analysis of the run too, into this folder of the worker.")
    ] = None,
    analysis_config: Annotated[
        Path | None, typer.Option(help="Configuration (YAML) of the analysis.")
    ] = None,
    analysis_schedule: Annotated[
        str | None, typer.Option(help="When the analysis runs: a cron expression.")
    ] = None,
    after_sweep: Annotated[
        bool, typer.Option("--after-sweep", help="Run the analysis whenever the sweep completes.")
    ] = False,
    pool_gpu: Annotated[str, typer.Option(help="Work pool of captures.")] = "i2am-gpu",
    pool_cpu: Annotated[str, typer.Option(help="Work pool of analyses.")] = "i2am-cpu",
    host: Annotated[
        str | None, typer.Option(help="Machine of the GPUs, for their limits; absent: this one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Deploy a sweep, and its analysis, on the server of PREFECT_API_URL.

    Work pools and concurrency limits are created where they are missing; a deployment of the same name is
    brought up to date. Start a worker for each pool: prefect worker start --pool i2am-gpu.
    """
    from flows.config import AnalysisConfig
    from flows.loading import load_capture, load_config
    from flows.orchestrate import as_flow

    if analysis_out is None and (analysis_config or analysis_schedule or after_sweep):
        raise ConfigError("an analysis to deploy", expected="--analysis-out FOLDER", got="no folder")
    if config is None and (analysis_out is not None or schedule is not None):
        raise ConfigError("a deployment", expected="the configuration of a capture", got="none")
    settings = load_capture(config) if config is not None else None
    if analysis_config is not None:
        load_config(analysis_config, AnalysisConfig)
    as_flow(True)
    from flows.deployed import ANALYSIS, SWEEP
    from flows.deploying import (
        Pools,
        Times,
        deploy_analysis,
        deploy_sweep,
        ensure_limits,
        ensure_pools,
        on_server,
    )

    api = os.environ.get("PREFECT_API_URL")
    pools = Pools(pool_gpu, pool_cpu)
    times = Times(schedule, analysis_schedule, timezone, after_sweep)
    deployments: dict[str, str] = {}
    with on_server(api) as client:
        made = ensure_pools(client, pools)
        limits = ensure_limits(client, (settings.sweep.gpus or []) if settings else [], host)
        if config is not None:
            name = name or config.stem
            sweep_id = deployments[f"{SWEEP}/{name}"] = deploy_sweep(config, name, pools, times)
            if analysis_out is not None:
                parameters = {
                    "run": str(config.resolve()),
                    "out": str(Path(analysis_out).absolute()),
                    "config": str(analysis_config.resolve()) if analysis_config is not None else None,
                }
                made_id = deploy_analysis(parameters, name, pools, times, sweep_id)
                deployments[f"{ANALYSIS}/{name}"] = made_id
    facts = {"server": api, "pools": [pool_gpu, pool_cpu], "created": made, "limits": limits}
    _show(facts | {"deployments": deployments}, as_json)


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(facts)
        return
    for pool in facts["pools"]:
        created = " created" if pool in facts["created"] else ""
        say(f"work pool {pool}{created}: prefect worker start --pool {pool}")
    for limit in facts["limits"]:
        say(f"concurrency limit {limit}")
    for deployment in facts["deployments"]:
        say(f"deployed {deployment}: prefect deployment run '{deployment}'")
