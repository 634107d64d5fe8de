"""What a capture will cost: the model's own geometry, learned from its first denoiser call, and the store's plan."""

from __future__ import annotations

import uuid
from typing import Any

from flows.capture_job import check_call, generate, open_capture
from flows.config import CaptureConfig
from flows.samples import open_samples
from flows.sources import call_inputs, load_pipeline
from storage import Plan, open_run, plan


class _Enough(Exception):
    """Ends the probe's generation: the geometry is known."""


def forecast(config: CaptureConfig) -> dict[str, Any]:
    """Predict bytes, files and memory of a capture without writing to its run.

    The pipeline starts to generate the first sample into a run in memory; once that run exists, which is after the first
    denoiser call that is kept, the generation is ended.

    Parameters
    ----------
    config
        The capture.

    Returns
    -------
    dict
        JSON-ready: ``samples``, ``steps``, ``bytes``, ``files``, ``peak_memory`` (bytes), and ``layers``, for each
        ``layer``, ``representation``, ``bytes_per_sample``, ``score_bytes_per_sample``, ``files``.

    Raises
    ------
    InputError
        As the capture itself would.
    StorageFull
        If the disk cannot hold the run; the message has both figures.
    """
    predicted = probe(config)
    if "://" not in config.out:
        predicted.check_disk(config.out)
    return {
        "run": config.out,
        "samples": predicted.samples,
        "steps": predicted.steps,
        "bytes": predicted.bytes,
        "files": predicted.files,
        "peak_memory": predicted.peak_memory,
        "layers": [
            {
                "layer": row.name,
                "representation": row.representation,
                "bytes_per_sample": row.bytes_per_sample,
                "score_bytes_per_sample": row.score_bytes_per_sample,
                "files": row.files,
            }
            for row in predicted.layers
        ],
    }


def probe(config: CaptureConfig) -> Plan:
    """Learn the geometry of a capture from its first denoiser call, and plan its store.

    Parameters
    ----------
    config
        The capture.

    Returns
    -------
    Plan
        Of the whole run.
    """
    samples = open_samples(config)
    pipe = load_pipeline(config)
    check_call(pipe, config, call_inputs(config, pipe))
    batch = [samples.load(index) for index in range(min(config.batch_size, len(samples.ids)))]
    memory = f"memory://{uuid.uuid4().hex}/probe.zarr"

    def listen(event: Any) -> None:
        if type(event).__name__ == "RunOpened":
            raise _Enough

    try:
        with open_capture(config, pipe, samples, path=memory, on_event=listen, storage_options={}) as cap:
            generate(config, pipe, cap, batch)
    except _Enough:
        pass
    run = open_run(memory)
    images = {name: _shape(image) for name, image in batch[0].images.items()}
    images["generated"] = (*images.get("source", images["reference"])[:2], 3)
    return plan(list(run.layers.values()), list(run.timesteps), list(samples.ids), image_shapes=images)


def _shape(image: Any) -> tuple[int, int, int]:
    return image.height, image.width, len(image.getbands())
