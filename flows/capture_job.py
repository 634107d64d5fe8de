"""The capture job: from a configuration to a run, resumed from what the run itself says is committed."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.config import CaptureConfig
from flows.describe import describe
from flows.progress import Progress, report
from flows.samples import SampleSet, open_samples
from flows.selection import selected, selected_layers
from storage import open_run
from storage.errors import ConfigError, NotFound, UnknownName

if TYPE_CHECKING:
    from pipeline.events import Event
    from pipeline.jobs import Call
    from storage import Run

_MAY_DIFFER = frozenset({"out", "storage_options"})
"""Keys that may change between the start of a capture and its resumption."""


def run_capture(config: CaptureConfig) -> dict[str, Any]:
    """Run a capture, or go on with one; samples that are committed are not touched.

    Parameters
    ----------
    config
        The capture, with absolute paths.

    Returns
    -------
    dict
        JSON-ready: ``run`` (its path), ``captured`` (now), ``committed``, ``declared``, ``bytes`` and
        ``files`` of all committed samples, ``seconds``, ``samples`` (id, seed, seconds, bytes of each that is
        committed).

    Raises
    ------
    ConfigError
        If the run exists with another configuration; the message names the keys that differ.
    InputError
        If samples, pipeline or run are not as the configuration says.
    """
    started = time.perf_counter()
    samples = open_samples(config)
    existing = _existing(config)
    before = len(existing.samples) if existing is not None else 0
    if before < len(samples.ids):
        _capture(config, samples, before)
    run = open_run(config.out, config.storage_options or None)
    facts = describe(run)
    return {
        "run": config.out,
        "captured": facts["samples"]["committed"] - before,
        "committed": facts["samples"]["committed"],
        "declared": facts["samples"]["declared"],
        "bytes": facts["bytes"],
        "files": facts["files"],
        "seconds": time.perf_counter() - started,
        "samples": [_row(run, sample) for sample in run.samples],
    }


def kept(config: CaptureConfig) -> dict[str, Any]:
    """Return what a configuration keeps, as arguments of ``pipeline.capture`` and ``pipeline.probe``."""
    return {
        "layers": selected_layers(config.layers),
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
        The pipeline and its :class:`pipeline.jobs.Call`.

    Raises
    ------
    UnknownName
        If the pipeline's call does not take an argument that the configuration gives.
    InputError
        If the pipeline cannot be loaded as described.
    """
    from flows.sources import call_inputs, load_pipeline

    pipe = load_pipeline(config)
    from pipeline.jobs import Call

    inputs = call_inputs(config, pipe)
    parameters = inspect.signature(pipe.__call__).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for name in (*inputs, *config.call, "generator"):
            if name not in parameters:
                raise UnknownName(f"argument of {type(pipe).__name__}'s call", name, parameters)
    return pipe, Call(inputs, config.call)


def _capture(config: CaptureConfig, samples: SampleSet, committed: int) -> None:
    report(Progress("capture", committed, len(samples.ids)))
    pipe, call = prepare(config)
    from pipeline.capturing import capture
    from pipeline.events import SampleDone
    from pipeline.jobs import run_job

    done = committed

    def listen(event: Event) -> None:
        """Count committed samples."""
        nonlocal done
        if isinstance(event, SampleDone):
            done += 1
            report(Progress("capture", done, len(samples.ids), event.sample))

    options: dict[str, Any] = {"storage_options": config.storage_options} if config.storage_options else {}
    notes = {"configuration": comparable(config), "seeds": dict(samples.seeds)}
    with capture(
        pipe, config.out, list(samples.ids), **kept(config), attrs=notes, on_event=listen, **options
    ) as cap:
        run_job(cap, pipe, samples.load, call, config.batch_size)


def _existing(config: CaptureConfig) -> Run | None:
    """Open the run if there is one, and compare what it was made with."""
    try:
        run = open_run(config.out, config.storage_options or None)
    except NotFound:
        return None
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
