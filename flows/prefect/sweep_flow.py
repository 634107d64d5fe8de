"""The Prefect flow behind ``i2am sweep``: shards over capture processes, retried, resumed from the run.

Prefect shows what happens and is asked to; it never holds up a capture: a server that is lost meanwhile is
waited for at the end.
"""

from __future__ import annotations

import time
from secrets import randbelow
from typing import Any, cast

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ThreadPoolTaskRunner

from i2am.flows.capture.job import Todo, summarise, waiting
from i2am.flows.config.models import CaptureConfig
from i2am.flows.console.output import human_bytes, log
from i2am.flows.console.progress import Progress, emit
from i2am.flows.datasets.open import open_samples
from i2am.flows.prefect.markdown import cells, plain
from i2am.flows.prefect.progress import watched
from i2am.flows.prefect.server import wait_for_server
from i2am.flows.sweep.gpu_lease import Turn
from i2am.flows.sweep.worker_pool import Pool, Shard, pool, shards
from i2am.flows.sweep.worker_process import WorkerLost
from i2am.storage.errors import CaptureError, InputError, NotFound

threads = cast(Any, ThreadPoolTaskRunner)(max_workers=64)
"""Of the tasks of a sweep; the pool bounds what runs at a time."""


@flow(name="i2am-sweep", flow_run_name="sweep {config.out}", persist_result=False, task_runner=threads)
def sweep_flow(config: CaptureConfig, retry_failed: bool = False) -> dict[str, Any]:
    """Capture everything that is missing; what fails is set aside.

    Parameters
    ----------
    config
        The capture; paths as seen by the worker.
    retry_failed
        Take samples again that were set aside.

    Returns
    -------
    dict
        As :func:`run_sweep`.
    """
    return run_sweep(config, retry_failed)


def run_sweep(config: CaptureConfig, retry_failed: bool) -> dict[str, Any]:
    """Do what :func:`sweep_flow` does, inside the flow that calls it; its parameters.

    Returns
    -------
    dict
        The summary of :func:`i2am.flows.capture.job.run_capture`, and ``lost``: one line for each shard that was
        given up.

    Raises
    ------
    CaptureError
        If nothing at all could be captured.
    """
    started, logger = time.perf_counter(), get_run_logger()
    samples = open_samples(config)
    before, ids = waiting(config, samples, Todo(retry_failed=retry_failed))
    cut = [Shard(part) for part in shards(ids, samples.ids, config.sweep.shard, config.batch_size)]

    def say(line: str) -> None:
        """Tell the log, and whoever looks on."""
        logger.info(line)
        log(f"i2am: {line}")

    def turn(gpu: str) -> Turn:
        """A turn on a GPU."""
        return Turn(gpu, say)

    with pool(config, len(samples.ids), before, turn) as workers, watched("i2am-sweep-progress", config.out):
        emit(Progress("capture", before, len(samples.ids)))
        lost = _capture_all(workers, cut, config)
    try:
        summary = summarise(config, before, time.perf_counter() - started)
    except NotFound as error:
        raise CaptureError("nothing was captured", got=lost[0] if lost else "no sample") from error
    summary["lost"] = lost
    if wait_for_server(str(PREFECT_API_URL.value()), config.sweep.patience):
        _publish(summary, _rows(summary, cut))
    return summary


def _capture_all(workers: Pool, cut: list[Shard], config: CaptureConfig) -> list[str]:
    """Run one task for each shard; one line for each that is given up."""

    def worth_another_try(task: Any, run: Any, state: Any) -> bool:
        """What the user has to mend fails again at once; a lost process need not."""
        return isinstance(state.result(raise_on_failure=False), WorkerLost)

    @task(
        name="capture shard",
        task_run_name="shard {number}: {first} ...",
        retries=config.sweep.retries,
        retry_condition_fn=worth_another_try,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def capture_shard(number: int, first: str) -> int:
        """Capture the missing samples of one shard."""
        tries = int(task_run.run_count) - 1  # the pause is ours: Prefect's own would outlast a cancellation
        workers.capture(cut[number], config.sweep.backoff * 2 ** (tries - 1) if tries else 0.0)
        return len(cut[number].captured)

    futures: dict[int, Any] = {}
    first = randbelow(len(cut)) if cut else 0  # sweeps on several machines begin at different shards
    for number in (*range(first, len(cut)), *range(first)):
        while sum(not future.wrapped_future.done() for future in futures.values()) >= 2 * workers.size:
            time.sleep(0.05)
        if any(isinstance(_error(future), InputError) for future in futures.values()):
            break  # the user has to mend something: no other shard would fare better
        futures[number] = capture_shard.submit(number, cut[number].ids[0])
    lost = []
    for number, future in sorted(futures.items()):
        future.wrapped_future.result()
        if (error := _error(future)) is not None:
            lost.append(f"shard {number} ({cut[number].ids[0]} ...): {error}")
    return lost


def _error(future: Any) -> Any:
    """What ended a task badly; None while it runs, and if it ended well. The server is not asked."""
    if not future.wrapped_future.done():
        return None
    future.wait()  # takes the state over
    return None if future.state.is_completed() else future.state.result(raise_on_failure=False)


def _rows(summary: dict[str, Any], cut: list[Shard]) -> list[dict[str, Any]]:
    """The table of the shards."""
    bytes_of = {row["sample"]: row["bytes"] for row in summary["samples"]}
    return [
        {
            "shard": number,
            "first sample": shard.ids[0],
            "samples": len(shard.ids),
            "captured": len(shard.captured),
            "seconds": round(shard.seconds, 1),
            "bytes": sum(bytes_of.get(sample, 0) for sample in shard.captured),
            "attempts": len(shard.places),
            "where": shard.places[-1] if shard.places else "",
        }
        for number, shard in enumerate(cut)
    ]


@task(name="publish sweep", retries=3, retry_delay_seconds=5, cache_policy=NO_CACHE, persist_result=False)
def _publish(summary: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the result as artifacts: tables of the shards and of the failures, and a summary."""
    run = plain(summary["run"])
    create_table_artifact(table=cells(rows), key="i2am-sweep-shards", description=run)
    create_table_artifact(table=cells(summary["failed"]), key="i2am-sweep-failures", description=run)
    rate = summary["captured"] / max(summary["seconds"], 1e-9)
    lost = "".join(f"- {plain(line)}\n" for line in summary["lost"])
    create_markdown_artifact(
        markdown=(
            f"# {run}\n\n| | |\n|---|---|\n"
            f"| captured now | {summary['captured']} |\n"
            f"| committed | {summary['committed']} of {summary['declared']} |\n"
            f"| set aside | {len(summary['failed'])} |\n"
            f"| size | {human_bytes(summary['bytes'])} in {summary['files']} files |\n"
            f"| speed | {60 * rate:.1f} samples a minute |\n" + (f"\n## Given up\n\n{lost}" if lost else "")
        ),
        key="i2am-sweep-summary",
    )
