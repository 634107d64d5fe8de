"""The capture job: from a configuration to a run on disk, resumed from what the run itself says is committed."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flows.config import CaptureConfig
from flows.describe import describe
from flows.progress import Progress, report
from flows.samples import SampleInput, SampleSet, open_samples
from flows.selection import selected
from storage import open_run
from storage.errors import ConfigError, NotFound, UnknownName

if TYPE_CHECKING:
    from pipeline.capture import Capture
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
        JSON-ready: ``run`` (its path), ``captured`` (now), ``committed``, ``declared``, ``bytes`` and ``files`` of all
        committed samples, ``seconds``, ``samples`` (id, seed, seconds, bytes of each that is committed).

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
    missing = _missing(existing, samples)
    if missing:
        _capture(config, samples, missing)
    run = open_run(config.out, config.storage_options or None)
    facts = describe(run)
    return {
        "run": config.out,
        "captured": facts["samples"]["committed"] - (len(samples.ids) - len(missing)),
        "committed": facts["samples"]["committed"],
        "declared": facts["samples"]["declared"],
        "bytes": facts["bytes"],
        "files": facts["files"],
        "seconds": time.perf_counter() - started,
        "samples": [_row(run, sample) for sample in run.samples],
    }


@contextmanager
def open_capture(config: CaptureConfig, pipe: Any, samples: SampleSet, **options: Any) -> Iterator[Capture]:
    """Open the capture that a configuration describes around a loaded pipeline.

    Parameters
    ----------
    config, pipe, samples
        What to capture, with what, of which samples.
    **options
        Override what the configuration gives to :func:`pipeline.capture`.

    Yields
    ------
    pipeline.capture.Capture
        The open capture.
    """
    from pipeline import capture

    arguments: dict[str, Any] = {
        "path": config.out,
        "samples": list(samples.ids),
        "layers": config.layers,
        "steps": selected(config.steps),
        "heads": selected(config.heads),
        "adapter": config.adapter,
        "representation": config.representation,
        "roles": tuple(config.roles),
        "attrs": {"configuration": comparable(config)},
    }
    if config.storage_options:
        arguments["storage_options"] = config.storage_options
    with capture(pipe, **(arguments | options)) as cap:
        yield cap


def comparable(config: CaptureConfig) -> dict[str, Any]:
    """Return what two captures must share for one to go on with the other, as JSON; credentials are left out."""
    return config.model_dump(mode="json", exclude=set(_MAY_DIFFER), exclude_none=True)


def generate(config: CaptureConfig, pipe: Any, cap: Capture, batch: Sequence[SampleInput]) -> None:
    """Generate and record one batch.

    Parameters
    ----------
    config
        The capture.
    pipe
        The pipeline.
    cap
        The open capture.
    batch
        Samples of one call of the pipeline.
    """
    from flows.sources import call_inputs

    inputs = call_inputs(config, pipe)
    for sample in batch:
        for argument, image in inputs.items():
            if image not in sample.images:
                raise ConfigError(
                    f"sample {sample.id!r}", expected=f"an image {image!r} for {argument!r}", got=", ".join(sample.images)
                )
    # A list for a batch, the bare image for one: some pipelines take only that.
    call = {name: [sample.images[image] for sample in batch] for name, image in inputs.items()}
    if len(batch) == 1:
        call = {name: images[0] for name, images in call.items()}
    names = set.intersection(*(set(sample.images) for sample in batch))
    stored = {name: [sample.images[name] for sample in batch] for name in sorted(names)}
    with cap.samples([sample.id for sample in batch], **stored) as handles:
        result = pipe(**call, **_noise(pipe, batch), **config.call)
        for handle, sample, image in zip(handles, batch, getattr(result, "images", result), strict=True):
            handle.generated = image
            handle.annotate(seed=sample.seed)


def check_call(pipe: Any, config: CaptureConfig, inputs: Mapping[str, str]) -> None:
    """Compare the arguments of the call with the pipeline's signature before anything is generated.

    Raises
    ------
    UnknownName
        If the pipeline's call does not take an argument.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for name in (*inputs, *config.call):
        if name not in parameters:
            raise UnknownName(f"argument of {type(pipe).__name__}'s call", name, parameters)


def _capture(config: CaptureConfig, samples: SampleSet, missing: Sequence[int]) -> None:
    from flows.sources import call_inputs, load_pipeline

    done = len(samples.ids) - len(missing)
    report(Progress("capture", done, len(samples.ids)))
    pipe = load_pipeline(config)
    check_call(pipe, config, call_inputs(config, pipe))
    with open_capture(config, pipe, samples) as cap:
        wanted = set(cap.missing)  # another process may have been at work since
        todo = [index for index in missing if samples.ids[index] in wanted]
        for first in range(0, len(todo), config.batch_size):
            batch = [samples.load(index) for index in todo[first : first + config.batch_size]]
            generate(config, pipe, cap, batch)
            for sample in batch:
                done += 1
                report(Progress("capture", done, len(samples.ids), sample.id))


def _noise(pipe: Any, batch: Sequence[SampleInput]) -> dict[str, Any]:
    """Give each sample a generator of its own, so that its noise does not depend on its batch or device."""
    import torch

    if "generator" not in inspect.signature(pipe.__call__).parameters:
        torch.manual_seed(batch[0].seed)
        return {}
    generators = [torch.Generator("cpu").manual_seed(sample.seed) for sample in batch]
    return {"generator": generators[0] if len(batch) == 1 else generators}


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
            f"run {config.out} was made with another configuration: {shown} differ" + ("" if keys[1:] else "s"),
            expected=f"{keys[0]}: {_at(before, keys[0])}",
            got=f"{keys[0]}: {_at(now, keys[0])}",
            remedy="restore it to go on with this run, or choose another out",
        )
    return run


def _missing(run: Run | None, samples: SampleSet) -> list[int]:
    committed = set(run.samples) if run is not None else set()
    return [index for index, sample in enumerate(samples.ids) if sample not in committed]


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
