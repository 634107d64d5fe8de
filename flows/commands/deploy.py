"""``i2am deploy``: sweeps and analyses that a Prefect server starts and its workers run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from i2am.flows.commands.options import AsJson
from i2am.flows.console.output import print_json, print_line
from i2am.storage.errors import ConfigError


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
    as_json: AsJson = False,
) -> None:
    """Deploy a sweep, and its analysis, on the server of PREFECT_API_URL.

    Work pools are created where they are missing; a deployment of the same name is brought up to date. Start
    a worker for each pool: prefect worker start --pool i2am-gpu.
    """
    from i2am.flows.config.load_yaml import load_capture
    from i2am.flows.config.models import AnalysisConfig
    from i2am.flows.prefect.choose import as_flow
    from i2am.storage.configuration.yaml_file import load_config

    if analysis_out is None and (analysis_config or analysis_schedule or after_sweep):
        raise ConfigError("an analysis to deploy", expected="--analysis-out FOLDER", got="no folder")
    if config is None and (analysis_out is not None or schedule is not None):
        raise ConfigError("a deployment", expected="the configuration of a capture", got="none")
    if config is not None:
        load_capture(config)
    if analysis_config is not None:
        load_config(analysis_config, AnalysisConfig)
    as_flow(prefect=True, direct=False)
    from i2am.flows.prefect import deploy as server

    pools = server.Pools(pool_gpu, pool_cpu)
    times = server.Times(schedule, analysis_schedule, timezone, after_sweep)
    analysis = None
    if analysis_out is not None:
        own = str(analysis_config.resolve()) if analysis_config is not None else None
        analysis = {"out": str(Path(analysis_out).absolute()), "config": own}
    made = server.deploy(os.environ.get("PREFECT_API_URL"), pools, times, config, name, analysis)
    print_json(made) if as_json else _say(made)


def _say(made: dict[str, Any]) -> None:
    for pool in made["pools"]:
        created = " created" if pool in made["created"] else ""
        print_line(f"work pool {pool}{created}: prefect worker start --pool {pool}")
    for deployment in made["deployments"]:
        print_line(f"deployed {deployment}: prefect deployment run '{deployment}'")
