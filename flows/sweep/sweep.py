"""A sweep: everything that a run lacks, captured in shards by a pool of processes. Needs no server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from secrets import randbelow
from typing import Any

from i2am.flows.capture.job import missing_samples, summarise
from i2am.flows.config.models import CaptureConfig
from i2am.flows.console.output import log
from i2am.flows.console.progress import Progress, emit
from i2am.flows.datasets.open import open_samples
from i2am.flows.sweep.pool import Event, Message, Pool, SampleCommitted, Shard
from i2am.storage.errors import CaptureError, NotFound


def run_sweep(
    config: CaptureConfig, retry_failed: bool = False, on_event: Callable[[Event], None] | None = None
) -> dict[str, Any]:
    """Capture everything that is missing; samples that fail are recorded, and do not stop the rest.

    ``on_event`` sees what the pool does. Returns the summary of a capture, ``lost`` (a line for each shard
    that was given up) and ``shards`` (a row for each).
    """
    started = time.perf_counter()
    samples = open_samples(config)
    before, ids = missing_samples(config, samples, retry_failed=retry_failed)
    shards = [
        Shard(number, part)
        for number, part in enumerate(cut_shards(ids, samples.ids, config.sweep.shard, config.batch_size))
    ]
    first = randbelow(len(shards)) if shards else 0  # sweeps on several machines begin at different shards
    committed = before
    emit(Progress("capture", committed, len(samples.ids)))
    with Pool(config, [*shards[first:], *shards[:first]]) as pool:
        for event in pool.events():
            if isinstance(event, SampleCommitted):
                committed += 1
                emit(Progress("capture", committed, len(samples.ids), event.sample))
            elif isinstance(event, Message):
                log(f"i2am: {event.text}")
            if on_event is not None:
                on_event(event)
    lost = [f"shard {shard.number} ({shard.ids[0]} ...): {shard.error}" for shard in shards if shard.error]
    try:
        summary = summarise(config, before, time.perf_counter() - started)
    except NotFound as error:
        raise CaptureError("nothing was captured", got=lost[0] if lost else "no sample") from error
    return summary | {"lost": lost, "shards": _rows(summary, shards)}


def cut_shards(ids: Sequence[str], declared: Sequence[str], size: int, batch: int) -> list[tuple[str, ...]]:
    """Cut ``ids`` into shards of ``size`` declared samples, rounded up to whole batches."""
    step, wanted = -(-size // batch) * batch, set(ids)
    cut = [[id for id in declared[i : i + step] if id in wanted] for i in range(0, len(declared), step)]
    return [tuple(shard) for shard in cut if shard]


def _rows(summary: dict[str, Any], shards: Sequence[Shard]) -> list[dict[str, Any]]:
    bytes_of = {row["sample"]: row["bytes"] for row in summary["samples"]}
    return [
        {
            "shard": shard.number,
            "first sample": shard.ids[0],
            "samples": len(shard.ids),
            "captured": len(shard.captured),
            "seconds": round(shard.seconds, 1),
            "bytes": sum(bytes_of.get(sample, 0) for sample in shard.captured),
            "attempts": shard.attempts,
            "where": shard.place,
        }
        for shard in shards
    ]
