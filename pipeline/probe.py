"""Learn a capture's geometry from the first denoiser call, without generating or storing anything."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

from numpy.typing import NDArray

from i2am.pipeline.adapters.contract import Adapter
from i2am.pipeline.adapters.region import RegionLike
from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.capture import Capture, make_settings
from i2am.pipeline.events import ignore
from i2am.storage.errors import CaptureError
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.writing.sink import Sink


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a run would hold: layers, timesteps of the kept steps, roles of each denoiser call of a step."""

    layers: tuple[LayerSpec, ...]
    timesteps: tuple[float, ...]
    calls: tuple[tuple[str, ...], ...]


def probe(
    pipe: Any,
    generate: Callable[[], object],
    samples: int = 1,
    adapter: str | Adapter | None = None,
    reference_region: RegionLike | None = None,
    **selection: Any,
) -> Geometry:
    """Run ``generate`` up to the end of the first kept denoiser call; what a capture would store.

    ``generate`` calls the pipeline for as many images as ``samples`` says; its result is never reached.
    ``selection`` is what :func:`make_settings` takes.
    """
    found = find_adapter(pipe, adapter, reference_region)
    settings = make_settings(pipe, found, **selection)
    ids = [str(i) for i in range(samples)]
    try:
        with Capture(pipe, found, settings, _ProbeTarget(ids), ignore) as cap, cap.samples(ids):
            generate()
    except _GeometryKnown as known:
        return known.geometry
    raise CaptureError("probe of the pipeline", expected="a denoiser call", got="none")


class _GeometryKnown(BaseException):
    """Stops the pipeline, as no error of capture's own may: nothing more is needed of it."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__("geometry known")
        self.geometry = geometry


class _ProbeTarget:
    """Stops the generation as soon as a run could be created."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.declared = self.missing = tuple(ids)

    def __enter__(self) -> _ProbeTarget:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def is_committed(self, id: str) -> bool:
        return False

    def check_samples(self, ids: Sequence[str], stored: Collection[str]) -> None:
        return None

    def prepare(
        self,
        specs: Sequence[LayerSpec],
        timesteps: Sequence[float],
        calls: Sequence[Sequence[str]],
        images: Mapping[str, NDArray[Any]],
    ) -> NoReturn:
        raise _GeometryKnown(Geometry(tuple(specs), tuple(timesteps), tuple(map(tuple, calls))))

    def add_image(self, name: str, image: NDArray[Any]) -> None:
        return None

    def open_sample(self, id: str, sinks: ExitStack) -> Sink:
        raise RuntimeError(f"a probe stops before sample {id!r}")
