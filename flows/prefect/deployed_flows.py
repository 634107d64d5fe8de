"""The flows that workers run for the deployments of ``i2am deploy`` and of ``prefect.yaml``.

Their parameters are plain, for forms and schedules: the path of a file, as the worker sees it, which is read
when the run starts, so that an edit takes effect with the next one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from i2am.flows.config.load_yaml import load_capture
from i2am.flows.config.models import AnalysisConfig
from i2am.flows.prefect.analyze_flow import analyze_flow
from i2am.flows.prefect.reporter import Reporter
from i2am.flows.prefect.sweep_flow import reported_sweep
from i2am.storage.configuration.yaml_file import load_config
from i2am.storage.errors import CaptureError
from i2am.storage.redaction import without_secrets

SWEEP, ANALYSIS = "i2am-nightly-sweep", "i2am-nightly-analysis"
"""Names of the flows; a deployment is addressed as ``FLOW/NAME``."""


@flow(name=SWEEP, flow_run_name="sweep {config}", persist_result=False)
def nightly_sweep(config: str, out: str | None = None, retry_failed: bool = False) -> dict[str, Any]:
    """Capture everything that a configuration lacks; samples that fail are recorded.

    Parameters
    ----------
    config
        File of the capture's configuration, on the worker.
    out
        The run to write instead of the one that the file names.
    retry_failed
        Take samples again that failed before.
    """
    settings = load_capture(config, out)
    with (
        without_secrets(),
        Reporter("sweep", settings.out, str(flow_run.id), settings.sweep.patience) as reporter,
    ):
        summary = reported_sweep(settings, retry_failed, reporter)
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
        Analyse anew even if nothing changed.
    """
    settings = load_config(config, AnalysisConfig) if config is not None else AnalysisConfig()
    if Path(run).suffix in (".yaml", ".yml"):
        run = load_capture(run).out
    return analyze_flow.fn(run, out, settings, overwrite, again)
