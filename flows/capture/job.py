"""The capture job: from a configuration to a run, resumed from what the run itself says is committed."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from i2am.flows.config.models import CaptureConfig
from i2am.flows.config.selections import selected
from i2am.flows.console.describe_run import describe
from i2am.flows.console.output import one_line
from i2am.flows.console.progress import Progress, emit
from i2am.flows.datasets.open import SampleSet, open_samples
from i2am.storage.errors import ConfigError, NotFound, UnknownName
from i2am.storage.format.marginals_only import need_attention
from i2am.storage.reading.open import open_run
from i2am.storage.writing.failures import clear_failures, failures, record_failure

if TYPE_CHECKING:
    from i2am.pipeline.events import Event
    from i2am.pipeline.jobs import Call
    from i2am.storage.reading.run import Run

_MAY_DIFFER = frozenset({"out", "storage_options", "sweep"})
"""Keys that may change between the start of a capture and its resumption."""


@dataclass(frozen=True, slots=True)
class Todo:
    """Which samples of a capture are to be taken.

    Attributes
    ----------
    only
        Ids; None for all.
    retry_failed
        Take those again that were set aside as failed; otherwise they are passed over.
    keep_going
        Set a sample aside that fails, and go on; otherwise its error ends the capture.
    """

    only: tuple[str, ...] | None = None
    retry_failed: bool = False
    keep_going: bool = False


def run_capture(config: CaptureConfig, todo: Todo | None = None) -> dict[str, Any]:
    """Run a capture, or go on with one; samples that are committed are not touched.

    Parameters
    ----------
    config
        The capture, with absolute paths.
    todo
        Which samples; None for all that are neither committed nor set aside.

    Returns
    -------
    dict
        JSON-ready: ``run`` (its path), ``captured`` (now), ``committed``, ``declared``, ``bytes`` and
        ``files`` of all committed samples, ``seconds``, ``samples`` (id, seed, seconds, bytes of each that is
        committed), ``failed`` (sample and error of each that is set aside).

    Raises
    ------
    ConfigError
        If the run exists with another configuration; the message names the keys that differ.
    InputError
        If samples, pipeline or run are not as the configuration says.
    """
    started = time.perf_counter()
    samples = open_samples(config)
    todo = todo or Todo()
    before, ids = waiting(config, samples, todo)
    if ids:
        emit(Progress("capture", before, len(samples.ids)))
        capture_samples(config, samples, prepare(config), ids, before, keep_going=todo.keep_going)
    return summarise(config, before, time.perf_counter() - started)


def waiting(config: CaptureConfig, samples: SampleSet, todo: Todo) -> tuple[int, list[str]]:
    """Ask the run what there is to do, and take back the failures that are to be tried again.

    Parameters
    ----------
    config, samples
        The capture and its samples.
    todo
        Which of them.

    Returns
    -------
    committed : int
        Samples that are there.
    ids : list of str
        Samples to take now, in declared order.

    Raises
    ------
    ConfigError
        If the run exists with another configuration.
    UnknownName
        If `todo` names a sample that there is not.
    """
    known = frozenset(samples.ids)
    for id in todo.only or ():
        if id not in known:
            raise UnknownName("sample", id, samples.ids)
    existing = _existing(config)
    committed = set(existing.samples) if existing is not None else set()
    chosen = set(samples.ids if todo.only is None else todo.only) - committed
    failed = failures(config.out, config.storage_options or None) if existing is not None else {}
    if todo.retry_failed:
        clear_failures(config.out, chosen & set(failed), config.storage_options or None)
    else:
        chosen -= set(failed)
    return len(committed), [id for id in samples.ids if id in chosen]


def summarise(config: CaptureConfig, before: int, seconds: float) -> dict[str, Any]:
    """Collect what :func:`run_capture` returns.

    Parameters
    ----------
    config
        The capture.
    before
        Samples that were committed when it began.
    seconds
        How long it took.

    Returns
    -------
    dict
        JSON-ready.
    """
    options = config.storage_options or None
    run = open_run(config.out, options)
    facts = describe(run)
    aside = failures(config.out, options)
    return {
        "run": config.out,
        "captured": facts["samples"]["committed"] - before,
        "committed": facts["samples"]["committed"],
        "declared": facts["samples"]["declared"],
        "bytes": facts["bytes"],
        "files": facts["files"],
        "seconds": seconds,
        "samples": [_row(run, sample) for sample in run.samples],
        "failed": [{"sample": each.sample, "error": each.error} for each in aside.values()],
    }


def kept(config: CaptureConfig) -> dict[str, Any]:
    """Return what a configuration keeps, as arguments of ``i2am.capture`` and ``i2am.pipeline.probe.probe``."""
    return {
        "layers": selected(config.layers),
        "steps": selected(config.steps),
        "heads": selected(config.heads),
        "adapter": config.adapter,
        "representation": config.representation,
        "roles": tuple(config.roles),
        "timesteps": config.timesteps,
        "guidance": config.guidance,
    }


def comparable(config: CaptureConfig) -> dict[str, Any]:
    """Return what two captures must share for one to go on with the other, as JSON, without credentials."""
    return config.model_dump(mode="json", exclude=set(_MAY_DIFFER), exclude_none=True)


def prepare(config: CaptureConfig) -> tuple[Any, Call]:
    """Load the pipeline, and check how it will be called before anything is generated.

    Parameters
    ----------
    config
        The capture.

    Returns
    -------
    pipe, call
        The pipeline and its :class:`i2am.pipeline.jobs.Call`.

    Raises
    ------
    UnknownName
        If the pipeline's call does not take an argument that the configuration gives.
    InputError
        If the pipeline cannot be loaded as described.
    """
    from i2am.flows.capture.load_pipeline import call_inputs, load_pipeline

    pipe = load_pipeline(config)
    from i2am.pipeline.jobs import Call

    inputs = call_inputs(config, pipe)
    parameters = inspect.signature(pipe.__call__).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for name in (*inputs, *config.call, "generator"):
            if name not in parameters:
                raise UnknownName(f"argument of {type(pipe).__name__}'s call", name, parameters)
    return pipe, Call(inputs, config.call)


def capture_samples(
    config: CaptureConfig,
    samples: SampleSet,
    prepared: tuple[Any, Call],
    ids: Sequence[str],
    committed: int,
    *,
    keep_going: bool = False,
) -> None:
    """Capture some samples with a pipeline that is loaded.

    Parameters
    ----------
    config, samples
        The capture and all its samples.
    prepared
        Of :func:`prepare`.
    ids
        The samples to take.
    committed
        Samples that are there, for the progress.
    keep_going
        Set a sample aside that fails, and go on.

    Raises
    ------
    InputError
        If a sample fails and nothing is to be set aside, or if none could be captured and there is no run.
    """
    from i2am.pipeline.capture import capture
    from i2am.pipeline.events import SampleDone, Waiting
    from i2am.pipeline.jobs import run_job

    pipe, call = prepared
    done, total = committed, len(samples.ids)
    failed: dict[str, Exception] = {}

    def listen(event: Event) -> None:
        """Count committed samples."""
        nonlocal done
        if isinstance(event, SampleDone):
            done += 1
            emit(Progress("capture", done, total, event.sample))
        elif isinstance(event, Waiting):
            emit(Progress("wait for another process", 0, len(event.samples), event.samples[0]))

    def fail(batch: Sequence[str], error: Exception) -> None:
        """Remember a batch that failed."""
        failed.update(dict.fromkeys(batch, error))

    options: dict[str, Any] = {"storage_options": config.storage_options} if config.storage_options else {}
    notes = {"configuration": comparable(config), "seeds": dict(samples.seeds)}
    try:
        with capture(
            pipe, config.out, list(samples.ids), **kept(config), attrs=notes, on_event=listen, **options
        ) as cap:
            on_failure = fail if keep_going else None
            run_job(cap, pipe, samples.load, call, config.batch_size, only=ids, on_failure=on_failure)
    finally:
        noted = _note(config, failed)
    if failed and not noted:
        raise next(iter(failed.values()))  # nothing worked, and there is no run to note it in


def _note(config: CaptureConfig, failed: Mapping[str, Exception]) -> bool:
    """Set samples aside; False if there is none, or no run to note it in."""
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
    before, now = run.attrs.get("configuration"), comparable(config)
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
    return {
        "sample": sample,
        "seed": notes.get("seed"),
        "seconds": notes.get("seconds"),
        "bytes": sum(entry["bytes"] for entry in record["files"].values()),
    }
