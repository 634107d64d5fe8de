"""A run of several references, read as if it had one alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, overload

from i2am.storage.errors import UnknownName
from i2am.storage.format.commit_record import CommitRecord
from i2am.storage.format.layer_spec import TEXT, LayerSpec
from i2am.storage.reading.run import Array, Run
from i2am.storage.reading.run_collection import AnyRun, Runs

PICTURES = ("reference", "reference_mask")
"""Images that are of the reference: of a further one, "reference-1" and "reference-1_mask"."""


def references_of(run: AnyRun) -> list[str]:
    """What the keys of a run's layers are of: its references in their order, then words."""
    found = {layer.reference for layer in run.layers.values()}
    return sorted(found, key=lambda name: (name == TEXT, len(name), name))


@overload
def one_reference(run: Run, reference: str | None) -> Run: ...
@overload
def one_reference(run: AnyRun, reference: str | None) -> AnyRun: ...
def one_reference(run: AnyRun, reference: str | None) -> AnyRun:
    """A run with the layers of one reference alone, whose pictures are those of that reference.

    Parameters
    ----------
    run : Run or Runs
        Opened.
    reference : str or None
        "reference", "reference-1", ..., or "text"; None: the run as it is, or its first if that is another.

    Returns
    -------
    Run or Runs
        Its images ``reference`` and ``reference_mask`` are ``reference-1`` and ``reference-1_mask`` where
        that is the reference, if the run has them.

    Raises
    ------
    UnknownName
        If no layer has keys of such a reference.
    """
    if reference is None and references_of(run)[0] in ("reference", TEXT):
        return run
    reference = reference or references_of(run)[0]
    if isinstance(run, Runs):
        return Runs([one_reference(member, reference) for member in run.members])
    if reference not in (known := references_of(run)):
        raise UnknownName("reference", reference, known)
    return OneReference(run, reference)


class OneReference(Run):
    """What `one_reference` returns."""

    def __init__(self, run: Run, reference: str) -> None:
        self.__dict__.update(run.__dict__)
        self._whole, self._reference = run, reference
        every = self._header.layers
        self._layers = {name: spec for name, spec in every.items() if spec.reference == reference}

    def __reduce__(self) -> tuple[Any, ...]:
        return OneReference, (self._whole, self._reference)

    @property
    def declared(self) -> tuple[str, ...]:
        """Ids of all samples that the run shall have, which may be labelled."""
        return self._whole.declared

    def position(self, sample: str) -> int:
        """Return the index of a declared sample; see `Run.position`."""
        return self._whole.position(sample)

    def _record(self, sample: str) -> CommitRecord:
        return self._whole._record(sample)

    @property
    def layers(self) -> Mapping[str, LayerSpec]:
        """Those of the reference."""
        return MappingProxyType(self._layers)

    def spec(self, layer: str | LayerSpec) -> LayerSpec:
        """Return the layer of a name, or raise `UnknownName`."""
        found = super().spec(layer)
        if found.name not in self._layers:
            raise UnknownName("layer", found.name, self.layers)
        return found

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the images, those of the reference as if there were no other."""
        return tuple(self._shown(super().images))

    def image(self, name: str, sample: str) -> Array:
        """Return one image of a sample; see `Run.image`."""
        if name not in (known := self.record(sample)["images"]):
            raise UnknownName("image", name, known)
        return super().image(self._own(name), sample)

    def record(self, sample: str) -> dict[str, Any]:
        """Return the commit record of a sample, with the images that this run shows."""
        record = super().record(sample)
        return {
            **record,
            "images": {n: record["images"][own] for n, own in self._shown(record["images"]).items()},
        }

    def _own(self, name: str) -> str:
        return name.replace("reference", self._reference, 1) if name in PICTURES else name

    def _shown(self, names: Any) -> dict[str, str]:
        """Shown name to stored name."""
        others = {name: name for name in names if name not in PICTURES}
        return others | {name: self._own(name) for name in PICTURES if self._own(name) in names}
