"""The run behind a capture: resumed where it exists, else created when the model's geometry is known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from i2am.pipeline.events import Listener, RunOpened
from i2am.pipeline.recording.provenance import describe, scheduler_facts
from i2am.storage.errors import AlreadyExists, ConfigError, InputError, NotFound, ShapeMismatch, UnknownName
from i2am.storage.format.layer_spec import OPTIONAL, LayerSpec
from i2am.storage.writing.create import create_run, resume_run
from i2am.storage.writing.sink import Sink
from i2am.storage.writing.writer import RunWriter


class RunTarget:
    """Creates or resumes the run at ``path``, and hands out sinks."""

    def __init__(
        self,
        path: str | Path,
        samples: Sequence[str] | None,  # to hold; None: those of an existing run
        pipe: Any,  # for the record
        attrs: Mapping[str, Any],
        options: Mapping[str, Any],  # of create_run
        on_event: Listener,  # told when the run is open
        fingerprint: Callable[[], Mapping[str, str | None]] = dict,  # of each layer's weights, if known
    ) -> None:
        self._path, self._wanted, self._pipe = path, samples, pipe
        self._attrs, self._options, self._on_event = dict(attrs), dict(options), on_event
        self._writer: RunWriter | None = None
        self._fingerprint, self._same_model = fingerprint, False

    def __enter__(self) -> RunTarget:
        try:
            self._resume()
        except NotFound:
            if not self._wanted:
                raise InputError(
                    "samples", expected="at least one id for a new run", got="none",
                    remedy="give capture(..., samples=[...])",
                ) from None  # fmt: skip
        return self

    def __exit__(self, *error: Any) -> None:
        if self._writer is not None:
            self._writer.close()

    @property
    def declared(self) -> tuple[str, ...]:
        return tuple(self._writer.samples) if self._writer is not None else tuple(self._wanted or ())

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(self._writer.missing) if self._writer is not None else self.declared

    def is_committed(self, id: str) -> bool:
        return self._writer is not None and self._writer.is_committed(id)

    def check_samples(self, ids: Sequence[str], stored: Collection[str]) -> None:
        """Refuse ids that are unknown, come twice, or are committed although they are to be stored."""
        if not ids or (stored and not set(ids) & set(stored)) or len(set(ids)) != len(ids):
            raise InputError(
                "samples of one call", expected="at least one id, each once", got=repr(list(ids))
            )
        known = self.declared
        for id in ids:
            if id not in known:
                raise UnknownName("sample", id, known)
            if id in stored and self.is_committed(id):
                raise AlreadyExists(
                    f"sample {id!r}", expected="one that is not captured yet", got="a committed one",
                    remedy="go through cap.missing",
                )  # fmt: skip

    def prepare(
        self,
        specs: Sequence[LayerSpec],
        timesteps: Sequence[float],
        calls: Sequence[Sequence[str]],
        images: Mapping[str, NDArray[Any]],
    ) -> Mapping[str, LayerSpec]:
        """Create the run with this geometry, or check that the existing one has it; return its layers."""
        if self._writer is None:
            attrs = {
                **describe(self._pipe),
                "guidance": {"calls": [list(rows) for rows in calls]},
                "dtype": specs[0].dtype,
                "attention_weights": dict(self._fingerprint()),
                **self._attrs,
            }
            try:
                self._writer = create_run(
                    self._path,
                    layers=list(specs),
                    timesteps=list(timesteps),
                    samples=list(self._wanted or ()),
                    attrs=attrs,
                    image_shapes={name: image.shape for name, image in images.items()},
                    **self._options,
                )
                self._same_model = True
                self._emit_opened()
            except AlreadyExists:  # another process was faster
                self._resume()
        self._check_geometry(specs, timesteps)
        self._check_model()
        return self._opened.layers

    def add_image(self, name: str, image: NDArray[Any]) -> None:
        self._opened.add_image(name, image.shape)

    def open_sample(self, id: str, sinks: ExitStack) -> Sink:
        return sinks.enter_context(self._opened.sample(id))

    @property
    def _opened(self) -> RunWriter:
        if self._writer is None:
            raise RuntimeError("the run is opened by prepare()")
        return self._writer

    def _resume(self) -> None:
        self._writer = resume_run(self._path, storage_options=self._options.get("storage_options"))
        known = frozenset(self._writer.samples)
        for id in self._wanted or ():
            if id not in known:
                self._writer.close()
                raise UnknownName(
                    "sample", id, self._writer.samples,
                    remedy="capture new samples into a new run, and analyse the runs together",
                )  # fmt: skip
        self._check_configuration()
        self._emit_opened()

    def _check_configuration(self) -> None:
        region, now = (attrs.get("reference_region") for attrs in (self._opened.attrs, self._attrs))
        if region != now:
            self._opened.close()
            raise ShapeMismatch(
                f"reference_region of the run {self._path}", expected=repr(region), got=repr(now),
                remedy="go on with that of the run, or capture into another",
            )  # fmt: skip
        # Another process with other settings may have made the run after this one looked for it.
        stored, own = (attrs.get("adapter_description") for attrs in (self._opened.attrs, self._attrs))
        if stored != own:
            self._opened.close()
            raise ConfigError(
                f"run {self._path} was captured with another description of its model",
                expected="that of the run, its adapter_description", got="another one",
                remedy="restore it to go on with this run, or capture into another",
            )  # fmt: skip
        stored, own = self._opened.attrs.get("configuration"), self._attrs.get("configuration")
        if own is not None and stored is not None and stored != own:
            self._opened.close()
            raise ConfigError(
                f"run {self._path} has just been made by another process", expected="the same configuration",
                got="another one", remedy="choose another out, or start both with one configuration",
            )  # fmt: skip

    def _check_model(self) -> None:
        """Refuse to go on with a run that another model, or another scheduler, has begun."""
        if self._same_model:
            return
        stored, own = self._opened.attrs.get("attention_weights", {}), self._fingerprint()
        known = {layer: digest for layer, digest in stored.items() if digest is not None}
        changed = [layer for layer, digest in own.items() if digest and known.get(layer, digest) != digest]
        what = f"layer {changed[0]!r} of the run" if changed else ""
        now = scheduler_facts(self._pipe)
        if not changed and self._opened.attrs.get("scheduler", now) != now:
            what = "scheduler of the run"
        if what:
            raise ShapeMismatch(
                what, expected="those of the model that began the run", got="other weights or settings",
                remedy="capture another checkpoint, LoRA or scheduler into a run of its own",
            )  # fmt: skip
        self._same_model = True

    def _emit_opened(self) -> None:
        self._on_event(RunOpened(str(self._path), len(self.declared), len(self.missing)))

    def _check_geometry(self, specs: Sequence[LayerSpec], timesteps: Sequence[float]) -> None:
        known, stored = self._opened.layers, list(self._opened.timesteps)
        for spec in specs:
            if spec.name not in known:
                raise UnknownName("layer", spec.name, known)
            if _geometry(spec) != _geometry(known[spec.name]):
                raise ShapeMismatch(
                    f"layer {spec.name!r} of the run", expected=repr(known[spec.name]), got=repr(spec),
                    remedy="capture other sizes and models into runs of their own",
                )  # fmt: skip
            lost = [kind for kind in OPTIONAL if getattr(known[spec.name], kind) and not getattr(spec, kind)]
            if lost:
                raise ShapeMismatch(
                    f"layer {spec.name!r} of the run", expected=f"its {lost[0]}, as in the run", got="none",
                    remedy="go on with value_norms=True and the model as it was, or into a run of its own",
                )  # fmt: skip
        if len(known) != len(specs) or stored != list(timesteps):
            raise ShapeMismatch(
                "layers and timesteps of the run",
                expected=f"{len(known)} layers, timesteps {stored}",
                got=f"{len(specs)} layers, timesteps {list(timesteps)}",
                remedy="capture other settings into a run of their own",
            )


def _geometry(spec: LayerSpec) -> tuple[Any, ...]:
    """What must agree between two captures of one layer."""
    grids = (spec.gen_grid, spec.ref_grid, spec.ref_prefix)
    return spec.heads, spec.head_dim, *grids, spec.dtype, spec.logit_scale
