"""Learn a capture's geometry from the first denoiser call, without generating or storing anything."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

from numpy.typing import NDArray

from i2am.pipeline.adapters.contract import Adapter
from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.capture import Capture, make_plan
from i2am.pipeline.events import ignore
from i2am.pipeline.recording.recording import SampleHandle
from i2am.pipeline.recording.selection import Layers
from i2am.storage.errors import CaptureError
from i2am.storage.format.layer_spec import LayerSpec, Representation
from i2am.storage.index_selection import Indices
from i2am.storage.writing.sink import Sink


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a run would hold.

    Attributes
    ----------
    layers
        Specification of every layer.
    timesteps
        Timesteps of the kept steps.
    calls
        Guidance roles of the row blocks of each denoiser call of a step.
    """

    layers: tuple[LayerSpec, ...]
    timesteps: tuple[float, ...]
    calls: tuple[tuple[str, ...], ...]


def probe(
    pipe: Any,
    generate: Callable[[], object],
    samples: int = 1,
    layers: Layers = None,
    steps: Indices = None,
    heads: Indices = None,
    adapter: str | Adapter | None = None,
    representation: Representation = "auto",
    roles: Sequence[str] = ("cond",),
    timesteps: Sequence[float] | None = None,
    guidance: Sequence[Sequence[str]] | None = None,
) -> Geometry:
    """Run ``generate`` up to the end of the first kept denoiser call, and say what a capture would store.

    Parameters
    ----------
    pipe
        The pipeline.
    generate
        Calls it; its result is never reached.
    samples
        Images that the call generates.
    layers, steps, heads, adapter, representation, roles, timesteps, guidance
        As for :func:`i2am.pipeline.capture.capture`.

    Returns
    -------
    Geometry
        Layers, timesteps and calls.

    Raises
    ------
    CaptureError
        If the pipeline ends without a denoiser call, or is not what its adapter says.
    """
    found = find_adapter(pipe, adapter)
    plan = make_plan(pipe, found, layers, steps, heads, representation, roles, timesteps, guidance)
    ids = [str(i) for i in range(samples)]
    try:
        with Capture(pipe, found, plan, _Probe(ids), ignore) as cap, cap.samples(ids):
            generate()
    except _Learnt as learnt:
        return learnt.geometry
    raise CaptureError("probe of the pipeline", expected="a denoiser call", got="none")


class _Learnt(Exception):
    """The geometry is known; nothing more is needed of the pipeline."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__("geometry known")
        self.geometry = geometry


class _Probe:
    """A target that stops the generation as soon as a run could be created."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.declared = self.missing = tuple(ids)

    def __enter__(self) -> _Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def is_committed(self, id: str) -> bool:
        """Nothing is."""
        return False

    def expect(self, ids: Sequence[str], kept: Collection[str]) -> None:
        """Every id is welcome."""

    def prepare(
        self,
        specs: Sequence[LayerSpec],
        timesteps: Sequence[float],
        calls: Sequence[Sequence[str]],
        images: Mapping[str, NDArray[Any]],
    ) -> NoReturn:
        """Stop here."""
        raise _Learnt(Geometry(tuple(specs), tuple(timesteps), tuple(map(tuple, calls))))

    def add_image(self, name: str, image: NDArray[Any]) -> None:
        """Nothing is kept."""

    def open_sample(self, handle: SampleHandle, hold: ExitStack) -> Sink:
        """Never reached."""
        raise CaptureError("probe", expected="to stop before any sample", got=f"sample {handle.id!r}")
