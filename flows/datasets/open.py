"""The samples of a capture: found and checked first, loaded one at a time."""

from __future__ import annotations

from i2am.flows.config.models import CaptureConfig
from i2am.flows.datasets.coco import open_coco
from i2am.flows.datasets.common import SampleInput as SampleInput
from i2am.flows.datasets.common import SampleSet as SampleSet
from i2am.flows.datasets.datasets_library import open_datasets
from i2am.flows.datasets.low_resolution import open_low_resolution
from i2am.flows.datasets.manifest import open_manifest
from i2am.flows.datasets.scenes import open_scenes
from i2am.flows.datasets.viton_hd import open_viton_hd
from i2am.flows.datasets.webdataset import open_webdataset
from i2am.storage.errors import ConfigError


def open_samples(config: CaptureConfig) -> SampleSet:
    """Find the samples of a configuration, and check all that can be checked without reading pixels."""
    samples = config.samples
    common = (config.seed, samples.limit, samples.size)
    if samples.scenes is not None:
        return open_scenes(samples.scenes)
    asked = (config.inputs or {}).values()
    needed = {name for names in asked for name in ([names] if isinstance(names, str) else names)}
    if samples.manifest is not None:
        return open_manifest(samples.manifest, needed, *common)
    if samples.datasets is not None:
        return open_datasets(samples.datasets, needed, *common)
    if samples.webdataset is not None:
        return open_webdataset(samples.webdataset, needed, *common)
    if samples.viton_hd is not None:
        return open_viton_hd(samples.viton_hd, *common)
    if samples.coco is not None:
        return open_coco(samples.coco, *common)
    if samples.low_resolution is not None:
        return open_low_resolution(samples.low_resolution, *common)
    raise ConfigError("samples", expected="one layout", got="none")
