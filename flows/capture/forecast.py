"""What a capture will cost: the geometry, learned from the first denoiser call, and the store's plan."""

from __future__ import annotations

from typing import Any

from i2am.flows.capture.job import capture_arguments, prepare
from i2am.flows.config.models import CaptureConfig
from i2am.flows.datasets.open import open_samples
from i2am.storage.writing.plan import Plan, plan


def forecast(config: CaptureConfig) -> Plan:
    """Predict bytes, files and memory of a capture without writing anything."""
    samples = open_samples(config)
    pipe, call = prepare(config)
    from i2am.pipeline.probe import probe

    batch = [samples.load(id) for id in samples.ids[: config.batch_size]]
    geometry = probe(pipe, lambda: call(pipe, batch), len(batch), **capture_arguments(config))
    images = {name: _shape(image) for name, image in batch[0].images.items()}
    # The result is as large as what it is painted into; where there is no source, as its reference.
    height, width, _ = images.get("source") or images["reference"]
    images["generated"] = (height, width, 3)
    return plan(
        geometry.layers, geometry.timesteps, samples.ids, images, attrs={"seeds": dict(samples.seeds)}
    )


def _shape(image: Any) -> tuple[int, int, int]:
    return image.height, image.width, len(image.getbands())
