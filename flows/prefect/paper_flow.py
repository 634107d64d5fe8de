"""The Prefect flow behind ``i2am paper``: a task for each experiment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from i2am.flows.experiments.paper import experiments
from i2am.flows.prefect.stage_log import logged_stages


@task(name="experiment", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def run_experiment(out: str, samples: int, steps: int, name: str) -> None:
    """Capture, or one experiment, with its stages in the log."""
    paper = experiments.Paper(Path(out), samples, steps)
    with logged_stages():
        state = experiments.prepare(paper)
        if name == "capture":
            experiments.capture_scenes(paper)
        else:
            experiments.run_experiment(paper, name, state)


@flow(name="i2am-paper", flow_run_name="paper {out}", persist_result=False)
def paper_flow(out: str, samples: int, steps: int) -> dict[str, Any]:
    """Run the experiments one after the other, as :func:`i2am.flows.experiments.paper.make_paper` does."""
    started = time.perf_counter()
    for name in ("capture", *experiments.EXPERIMENTS):
        run_experiment(out, samples, steps, name)
    return experiments.finish(experiments.Paper(Path(out), samples, steps), started)
