"""The Prefect flow behind ``i2am sweep``: shards over capture processes, retried, resumed from the run."""

from __future__ import annotations

import time
from typing import Any, cast

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from flows.capture_job import Todo, summarise, waiting
from flows.config import CaptureConfig
from flows.markdown import cells, plain
from flows.progress import Progress, report
from flows.samples import open_samples
from flows.terminal import human_bytes
from flows.watched import watched
from flows.workers import Pool, WorkerLost, pool, shards
from storage.errors import CaptureError, InputError, NotFound


def _worth_another_try(task: Any, run: Any, state: Any) -> bool:
    """What the user has to mend fails again at once; a lost process need not."""
    return isinstance(state.result(raise_on_failure=False), WorkerLost)


@flow(
    name="i2am-sweep",
    flow_run_name="sweep {config.out}",
    persist_result=False,
    task_runner=cast(Any, ThreadPoolTaskRunner)(max_workers=64),  # the pool bounds what runs at a time
)
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
        The summary of :func:`flows.capture_job.run_capture`, and ``lost``: one line for each shard that was
        given up.

    Raises
    ------
    CaptureError
        If nothing at all could be captured.
    """
    started = time.perf_counter()
    samples = open_samples(config)
    before, ids = waiting(config, samples, Todo(retry_failed=retry_failed))
    cut = shards(ids, samples.ids, config.sweep.shard, config.batch_size)
    with pool(config, len(samples.ids), before) as workers, watched("i2am-sweep-progress", config.out):
        report(Progress("capture", before, len(samples.ids)))
        lost = _capture_all(workers, cut, config)
    try:
        summary = summarise(config, before, time.perf_counter() - started)
    except NotFound as error:
        raise CaptureError("nothing was captured", got=lost[0] if lost else "no sample") from error
    summary["lost"] = lost
    _publish(summary)
    return summary


def _capture_all(workers: Pool, cut: list[tuple[str, ...]], config: CaptureConfig) -> list[str]:
    """Run one task for each shard; one line for each that is given up."""

    @task(
        name="capture shard",
        task_run_name="shard {number}: {first} ...",
        retries=config.sweep.retries,
        retry_delay_seconds=exponential_backoff(config.sweep.backoff),
        retry_condition_fn=_worth_another_try,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def capture_shard(number: int, first: str) -> int:
        """Capture the missing samples of one shard."""
        return workers.capture(cut[number])

    futures: list[Any] = []
    for number, ids in enumerate(cut):
        while sum(not future.state.is_final() for future in futures) >= 2 * workers.size:
            time.sleep(0.05)
        if any(isinstance(_error(future), InputError) for future in futures):
            break  # the user has to mend something: no other shard would fare better
        futures.append(capture_shard.submit(number, ids[0]))
    lost = []
    for number, future in enumerate(futures):
        future.wait()
        if (error := _error(future)) is not None:
            lost.append(f"shard {number} ({cut[number][0]} ...): {error}")
    return lost


def _error(future: Any) -> Any:
    """What ended a task badly; None while it runs, and if it ended well."""
    state = future.state
    return state.result(raise_on_failure=False) if state.is_final() and not state.is_completed() else None


@task(name="publish sweep", cache_policy=NO_CACHE, persist_result=False)
def _publish(summary: dict[str, Any]) -> None:
    """Write the result as artifacts: a table of the failures and a summary."""
    create_table_artifact(
        table=cells(summary["failed"]), key="i2am-sweep-failures", description=plain(summary["run"])
    )
    rate = summary["captured"] / max(summary["seconds"], 1e-9)
    lost = "".join(f"- {plain(line)}\n" for line in summary["lost"])
    create_markdown_artifact(
        markdown=(
            f"# {plain(summary['run'])}\n\n| | |\n|---|---|\n"
            f"| captured now | {summary['captured']} |\n"
            f"| committed | {summary['committed']} of {summary['declared']} |\n"
            f"| set aside | {len(summary['failed'])} |\n"
            f"| size | {human_bytes(summary['bytes'])} in {summary['files']} files |\n"
            f"| speed | {60 * rate:.1f} samples a minute |\n" + (f"\n## Given up\n\n{lost}" if lost else "")
        ),
        key="i2am-sweep-summary",
    )
