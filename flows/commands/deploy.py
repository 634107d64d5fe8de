"""``i2am deploy``: sweeps and analyses that a Prefect server starts and its workers run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands.options import AsJson
from i2am.flows.console.output import print_json, print_line
from i2am.storage.errors import ConfigError

if TYPE_CHECKING:
    from i2am.flows.prefect.deploy import Pools, Times


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
    from i2am.flows.config.load_yaml import load_capture, load_config
    from i2am.flows.config.models import AnalysisConfig
    from i2am.flows.prefect.choose import as_flow

    if analysis_out is None and (analysis_config or analysis_schedule or after_sweep):
        raise ConfigError("an analysis to deploy", expected="--analysis-out FOLDER", got="no folder")
    if config is None and (analysis_out is not None or schedule is not None):
        raise ConfigError("a deployment", expected="the configuration of a capture", got="none")
    settings = load_capture(config) if config is not None else None
    if analysis_config is not None:
        load_config(analysis_config, AnalysisConfig)
    as_flow(True)
    from i2am.flows.prefect.deploy import Pools, Times

    pools, times = Pools(pool_gpu, pool_cpu), Times(schedule, analysis_schedule, timezone, after_sweep)
    analysis = {"out": analysis_out, "config": analysis_config}
    made = _deploy(config, name, analysis, pools, times, settings.sweep.gpus or [] if settings else [], host)
    print_json(made) if as_json else _say(made)


def _deploy(
    config: Path | None,
    name: str | None,
    analysis: dict[str, Any],
    pools: Pools,
    times: Times,
    gpus: Sequence[str | int],
    host: str | None,
) -> dict[str, Any]:
    """Bring the server up to date; what is there then, as ``--json`` writes it."""
    from i2am.flows.prefect import deploy
    from i2am.flows.prefect.deployed_flows import ANALYSIS, SWEEP

    api = os.environ.get("PREFECT_API_URL")
    deployments: dict[str, str] = {}
    with deploy.on_server(api) as client:
        created = deploy.ensure_pools(client, pools)
        limits = deploy.ensure_limits(client, gpus, host)
        if config is not None:
            name = name or config.stem
            sweep_id = deploy.deploy_sweep(config, name, pools, times)
            deployments[f"{SWEEP}/{name}"] = sweep_id
            if analysis["out"] is not None:
                own = analysis["config"]
                parameters = {
                    "run": str(config.resolve()),
                    "out": str(Path(analysis["out"]).absolute()),
                    "config": str(own.resolve()) if own is not None else None,
                }
                study_id = deploy.deploy_analysis(parameters, name, pools, times, sweep_id)
                deployments[f"{ANALYSIS}/{name}"] = study_id
    return {
        "server": api,
        "pools": [pools.gpu, pools.cpu],
        "created": created,
        "limits": limits,
        "deployments": deployments,
    }


def _say(made: dict[str, Any]) -> None:
    for pool in made["pools"]:
        created = " created" if pool in made["created"] else ""
        print_line(f"work pool {pool}{created}: prefect worker start --pool {pool}")
    for limit in made["limits"]:
        print_line(f"concurrency limit {limit}")
    for deployment in made["deployments"]:
        print_line(f"deployed {deployment}: prefect deployment run '{deployment}'")
