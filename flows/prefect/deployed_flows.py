"""The flows that workers run for the deployments of ``i2am deploy`` and of ``prefect.yaml``.

Their parameters are plain, for forms and schedules: the path of a file, as the worker sees it, which is read
when the run starts, so that an edit takes effect with the next one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from i2am.flows.config.load_yaml import load_capture, load_config
from i2am.flows.config.models import AnalysisConfig
from i2am.flows.prefect.analyze_flow import run_analyze
from i2am.flows.prefect.sweep_flow import run_sweep, threads
from i2am.storage.errors import CaptureError

SWEEP, ANALYSIS = "i2am-nightly-sweep", "i2am-nightly-analysis"
"""Names of the flows; a deployment is addressed as ``FLOW/NAME``."""


@flow(name=SWEEP, flow_run_name="sweep {config}", persist_result=False, task_runner=threads)
def nightly_sweep(config: str, out: str | None = None, retry_failed: bool = False) -> dict[str, Any]:
    """Capture everything that a configuration lacks; samples that fail are set aside.

    Parameters
    ----------
    config
        File of the capture's configuration, on the worker.
    out
        The run to write instead of the one that the file names.
    retry_failed
        Take samples again that were set aside.

    Returns
    -------
    dict
        As :func:`i2am.flows.prefect.sweep_flow.run_sweep`.

    Raises
    ------
    CaptureError
        If shards were given up: the flow run fails, and the next one goes on from what is there.
    """
    summary = run_sweep(load_capture(config, out), retry_failed)
    if summary["lost"]:
        raise CaptureError(
            f"{len(summary['lost'])} shards were given up",
            got=summary["lost"][0],
            remedy="the next run of this deployment takes them again",
        )
    return summary


@flow(name=ANALYSIS, flow_run_name="analyze {run}", persist_result=False)
def nightly_analysis(
    run: str, out: str, config: str | None = None, overwrite: bool = False, again: bool = False
) -> dict[str, Any]:
    """Analyse a run into a directory; what did not change since the last time is left as it is.

    Parameters
    ----------
    run
        The run, or the file of its capture's configuration, on the worker.
    out
        Directory of the results.
    config
        File of the analysis's configuration, on the worker; None for the defaults.
    overwrite
        Replace results in ``out`` that no analysis wrote.
    again
        Make it anew even if nothing changed.

    Returns
    -------
    dict
        The summary of :func:`i2am.flows.analyze.job.run_analysis`.
    """
    settings = load_config(config, AnalysisConfig) if config is not None else AnalysisConfig()
    if Path(run).suffix in (".yaml", ".yml"):
        run = load_capture(run).out
    return run_analyze(run, out, settings, overwrite, again)
