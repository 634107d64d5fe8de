"""The capture job: from a configuration to a run, resumed from what the run itself says is committed."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from i2am.flows.config.models import CaptureConfig
from i2am.flows.config.selections import selected
from i2am.flows.console.describe_run import describe
from i2am.flows.console.output import one_line
from i2am.flows.console.progress import Progress, emit
from i2am.flows.datasets.open import SampleSet, open_samples
from i2am.flows.deadline import OwnDeadline
from i2am.storage.errors import ConfigError, NotFound, UnknownName
from i2am.storage.format.marginals_only import need_attention
from i2am.storage.reading.open import open_run
from i2am.storage.redaction import redact
from i2am.storage.writing.failures import clear_failures, failures, record_failure

if TYPE_CHECKING:
    from i2am.pipeline.events import Event
    from i2am.pipeline.jobs import Call
    from i2am.storage.reading.run import Run

_MAY_DIFFER = frozenset({"out", "storage_options", "deadline", "sweep", "value_norms"})
"""Keys that may change between the start of a capture and its resumption."""


def run_capture(
    config: CaptureConfig,
    *,
    only: Sequence[str] | None = None,
    retry_failed: bool = False,
    keep_going: bool = False,
) -> dict[str, Any]:
    """Run a capture, or go on with one; samples that are committed are not touched.

    ``only`` names the samples to take; ``retry_failed`` takes those again that were recorded as failed;
    ``keep_going`` records a sample that fails and goes on, otherwise its error ends the capture, as does a
    model that makes no step within the configuration's ``deadline``. Returns what
    ``--json`` writes: ``run`` (its path), ``captured`` (now), ``committed``, ``declared``, ``bytes`` and
    ``files`` of the committed samples, ``seconds``, ``samples`` (id, seed, seconds and bytes of each that is
    committed), ``failed`` (sample and error of each that failed).
    """
    started = time.perf_counter()
    samples = open_samples(config)
    before, ids = missing_samples(config, samples, only=only, retry_failed=retry_failed)
    if ids:
        emit(Progress("capture", before, len(samples.ids)))
        with OwnDeadline(config.deadline) as deadline:
            prepared = prepare(config)
            capture_samples(
                config, samples, prepared, ids, before, config.deadline,
                keep_going=keep_going, alive=deadline.pat,
            )  # fmt: skip
    return summarise(config, before, time.perf_counter() - started)


def missing_samples(
    config: CaptureConfig,
    samples: SampleSet,
    *,
    only: Sequence[str] | None = None,
    retry_failed: bool = False,
) -> tuple[int, list[str]]:
    """Ask the run how many samples are committed, and which are to be taken now, in declared order."""
    known = frozenset(samples.ids)
    for id in only or ():
        if id not in known:
            raise UnknownName("sample", id, samples.ids)
    existing = _existing(config)
    committed = set(existing.samples) if existing is not None else set()
    chosen = set(samples.ids if only is None else only) - committed
    failed = failures(config.out, config.storage_options or None) if existing is not None else {}
    if retry_failed:
        clear_failures(config.out, chosen & set(failed), config.storage_options or None)
    else:
        chosen -= set(failed)
    return len(committed), [id for id in samples.ids if id in chosen]


def summarise(config: CaptureConfig, before: int, seconds: float) -> dict[str, Any]:
    """Collect what :func:`run_capture` returns; ``before`` samples were committed when it began."""
    options = config.storage_options or None
    run = open_run(config.out, options)
    facts = describe(run)
    return {
        "run": config.out,
        "captured": facts["samples"]["committed"] - before,
        "committed": facts["samples"]["committed"],
        "declared": facts["samples"]["declared"],
        "bytes": facts["bytes"],
        "files": facts["files"],
        "seconds": seconds,
        "samples": [_row(run, sample) for sample in run.samples],
        "failed": [
            {"sample": each.sample, "error": each.error} for each in failures(config.out, options).values()
        ],
    }


def capture_arguments(config: CaptureConfig) -> dict[str, Any]:
    """Arguments of ``i2am.capture`` and ``i2am.pipeline.probe.probe`` that a configuration gives."""
    return {
        "layers": selected(config.layers),
        "steps": selected(config.steps),
        "heads": selected(config.heads),
        "adapter": config.adapter,
        "reference_region": config.reference_region,
        "representation": config.representation,
        "roles": tuple(config.roles),
        "timesteps": config.timesteps,
        "guidance": config.guidance,
        "value_norms": config.value_norms,
        "text": config.text is True,
    }


def comparable(config: CaptureConfig) -> dict[str, Any]:
    """What two captures must share for one to go on with the other, as JSON, without credentials."""
    return config.model_dump(mode="json", exclude=set(_MAY_DIFFER), exclude_none=True)


def prepare(config: CaptureConfig) -> tuple[Any, Call]:
    """Load the pipeline, and check how it will be called before anything is generated."""
    from i2am.flows.capture.load_pipeline import call_inputs, load_pipeline

    pipe = load_pipeline(config)
    from i2am.pipeline.adapters.registry import find_adapter
    from i2am.pipeline.jobs import Call

    inputs = call_inputs(config, pipe)
    parameters = inspect.signature(pipe.__call__).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for name in (*inputs, *config.call, "generator"):
            if name not in parameters:
                raise UnknownName(f"argument of {type(pipe).__name__}'s call", name, parameters)
    family = find_adapter(pipe, config.adapter, config.reference_region)
    lists = any(not isinstance(names, str) for names in inputs.values())
    if config.batch_size > 1 and (lists or family.takes_lists(pipe)):
        raise ConfigError(
            "batch_size", expected="1: the pipeline takes a list of images for the references of one prompt",
            got=str(config.batch_size), remedy="leave batch_size out",
        )  # fmt: skip
    return pipe, Call(inputs, config.call)


def capture_samples(
    config: CaptureConfig,
    samples: SampleSet,
    prepared: tuple[Any, Call],
    ids: Sequence[str],
    committed: int,
    deadline: float,
    *,
    keep_going: bool = False,
    alive: Callable[[], None] = lambda: None,
) -> None:
    """Capture ``ids`` with a pipeline that is loaded; ``committed`` samples are there, for the progress.

    Other processes are waited for as long as one of their samples is done within ``deadline`` seconds.
    ``alive`` is called after each step of the denoiser, and while other processes are waited for.
    """
    from i2am.pipeline.capture import capture
    from i2am.pipeline.jobs import run_job

    pipe, call = prepared
    failed: dict[str, Exception] = {}

    def on_failure(batch: Sequence[str], error: Exception) -> None:
        failed.update(dict.fromkeys(batch, error))

    arguments: dict[str, Any] = capture_arguments(config)
    if config.storage_options:
        arguments["storage_options"] = config.storage_options
    try:
        with capture(
            pipe,
            config.out,
            list(samples.ids),
            attrs={"configuration": comparable(config), "seeds": dict(samples.seeds)},
            on_event=_progress_of(committed, len(samples.ids), alive),
            **arguments,
        ) as cap:
            run_job(
                cap, pipe, samples.load, call, config.batch_size,
                only=ids, on_failure=on_failure if keep_going else None, deadline=deadline,
            )  # fmt: skip
    finally:
        recorded = _record_failures(config, failed)
    if failed and not recorded:
        raise next(iter(failed.values()))  # nothing worked, and there is no run to record it in


def _progress_of(done: int, total: int, alive: Callable[[], None]) -> Callable[[Event], None]:
    """Turn events of a capture into progress."""
    from i2am.pipeline.events import SampleDone, Waiting

    def on_event(event: Event) -> None:
        nonlocal done
        if isinstance(event, SampleDone):
            done += 1
            emit(Progress("capture", done, total, event.sample))
            return
        alive()
        if isinstance(event, Waiting):
            emit(Progress("wait for another process", 0, len(event.samples), event.samples[0]))

    return on_event


def _record_failures(config: CaptureConfig, failed: Mapping[str, Exception]) -> bool:
    """Record samples as failed; False if there is none, or no run to record them in."""
    if not failed or _existing(config) is None:
        return False
    lines = {id: one_line(error)[:500] for id, error in failed.items()}
    record_failure(config.out, lines, config.storage_options or None)
    return True


def _existing(config: CaptureConfig) -> Run | None:
    """Open the run if there is one, and compare what it was made with."""
    try:
        run = open_run(config.out, config.storage_options or None)
    except NotFound:
        return None
    need_attention(run.attrs, config.out, "capturing into it")
    before, now = redact(run.attrs.get("configuration")), comparable(config)
    if before is not None and before != now:
        keys = _differing(before, now)
        shown = ", ".join(keys[:4])
        raise ConfigError(
            f"run {config.out} was made with another configuration: {shown}",
            expected=f"{keys[0]}: {_at(before, keys[0])}",
            got=_at(now, keys[0]),
            remedy="restore it to go on with this run, or choose another out",
        )
    return run


def _differing(before: Any, now: Any, path: str = "") -> list[str]:
    """Key paths at which two configurations differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted({*before, *now})
        return [
            found
            for key in keys
            for found in _differing(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if before == now else [path]


def _at(config: Any, path: str) -> str:
    for key in path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    text = "nothing" if config is None else repr(config)
    return text if len(text) <= 60 else text[:57] + "..."


def _row(run: Run, sample: str) -> dict[str, Any]:
    record = run.record(sample)
    notes = record.get("annotations", {})
    seconds = notes.get("seconds")
    return {
        "sample": sample,
        "seed": notes.get("seed"),
        "seconds": seconds if isinstance(seconds, float) else None,  # a data set may have such a column
        "bytes": sum(entry["bytes"] for entry in record["files"].values()),
    }
