"""An adapter that is described instead of written: sites by pattern, tokens by ranges and expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from i2am.pipeline.adapters.contract import Adapter, JointSite, LateSpans, Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.generic.description import Description, Generated, Reference
from i2am.pipeline.adapters.generic.expressions import evaluate, positions
from i2am.pipeline.adapters.generic.module_patterns import matching_modules
from i2am.pipeline.adapters.generic.sizes import sizes_of
from i2am.pipeline.compilation import named_modules, original
from i2am.pipeline.timesteps import starting_at
from i2am.storage.configuration.validate import validate
from i2am.storage.configuration.yaml_file import load_config
from i2am.storage.errors import CaptureError, UnknownName


@dataclass(frozen=True, slots=True)
class DescribedSite(JointSite):
    """A layer, with which of the description's entries it is."""

    entry: int = 0


class GenericAdapter(Adapter):
    """An adapter of a model that is described, here or in a YAML file (docs/your-own-model.md).

    Parameters
    ----------
    **description
        As in the file. ``denoiser``: the pipeline's attribute. ``timestep``: its argument, or ``{argument,
        times}``. ``schedule``: the pipeline's attribute with all timesteps, if it has no scheduler.
        ``guidance``: ``[[uncond, cond]]``, rows of a call, or ``[[cond], [uncond]]``, calls of a step.
        ``position_ids``, ``latents``: arguments of the denoiser. ``inputs``: argument of the pipeline's call
        to a sample's image or text. ``layers``: a list of mappings with ``modules`` (patterns), ``call``,
        ``queries``, ``keys`` (which attention call), ``generated`` and ``references`` (``at``, ``grid``,
        ``prefix``), ``text``, ``heads``, ``static_keys``, ``output``, ``stream``.

    Raises
    ------
    ConfigError
        A key that is unknown or missing, or a value that does not fit, by its path.
    """

    def __init__(self, **description: Any) -> None:
        self._told = validate(description, Description, "GenericAdapter")
        self._prepare()

    @classmethod
    def read(cls, path: str | Path) -> GenericAdapter:
        """Read the description of a YAML file.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        GenericAdapter
            What ``adapter=`` takes; so does the path itself.
        """
        found = cls.__new__(cls)
        found._told = load_config(path, Description)
        found._prepare(Path(path).stem)
        return found

    def _prepare(self, name: str = "described") -> None:
        self.name, self.part = self._told.name or name, self._told.denoiser
        self.description = self._told.model_dump(mode="json", exclude_unset=True)

    def matches(self, pipe: Any) -> bool:
        """See `Adapter.matches`: it has to be named."""
        return False

    def denoiser(self, pipe: Any) -> nn.Module:
        """See `Adapter.denoiser`: the module at the pipeline's attribute ``denoiser``."""
        try:
            found = attrgetter(self.part)(pipe)
        except AttributeError:
            found = None
        if not isinstance(found, nn.Module):
            raise CaptureError(
                f"adapter {self.name!r}: denoiser: the pipeline's {self.part}",
                expected="a torch module",
                got=type(found).__name__,
                remedy="correct the adapter's description; i2am probe names the pipeline's modules",
            )
        return found

    def sites(self, pipe: Any) -> Sequence[DescribedSite]:
        """See `Adapter.sites`: the modules that ``layers`` name, in the order of the model."""
        modules = {
            ".".join(filter(None, (self.part, path))): module
            for path, module in named_modules(self.denoiser(pipe))
        }
        order, found = list(modules), dict[str, DescribedSite]()
        for number, entry in enumerate(self._told.layers):
            for path in matching_modules(entry.modules, order):
                name = ".".join(filter(None, (path, entry.name)))
                if name in found:
                    raise self._refused(
                        f"layers.{number}.modules",
                        f"layer {name!r}, which layers.{found[name].entry} has too",
                        "give one of them a name:, or narrow its patterns",
                    )
                _check_fast_path(name, modules[path])
                beside = modules.get(path.rpartition(".")[0])
                output, stream = (
                    self._part(number, key, told, original(modules[path]), beside)
                    for key, told in (("output", entry.output), ("stream", entry.stream))
                )
                found[name] = DescribedSite(
                    name, original(modules[path]), output, stream,
                    stream_first=entry.stream_first, reference_index=entry.first_reference, entry=number,
                )  # fmt: skip
        return sorted(found.values(), key=lambda site: order.index(self._path(site)))

    def _path(self, site: DescribedSite) -> str:
        suffix = self._told.layers[site.entry].name
        return site.name.removesuffix(f".{suffix}") if suffix else site.name

    def _part(
        self, number: int, key: str, told: str | None, module: nn.Module, beside: nn.Module | None
    ) -> nn.Module | None:
        """A module by its path below the layer, or below what holds the layer."""
        for holder in (module, beside) if told else ():
            try:
                found = attrgetter(str(told))(holder)
            except AttributeError:
                continue
            if isinstance(found, nn.Module):
                return found
        if told:
            raise self._refused(
                f"layers.{number}.{key}", f"no module {told!r} in a {type(module).__name__} or beside it"
            )
        return None

    def spans(
        self, pipe: Any, arguments: Mapping[str, Any], sites: Sequence[JointSite]
    ) -> Mapping[str, Spans | LateSpans]:
        """See `Adapter.spans`: where tokens stand, or how it follows from a call's own sizes."""
        latents = self.latents(arguments)
        try:
            sizes = sizes_of(arguments, latents, self._told.position_ids)
        except ValueError as error:
            raise self._refused("position_ids", str(error)) from None
        rows = None if latents is None else int(latents.shape[0])
        late = [self._late(number, sizes, rows) for number in range(len(self._told.layers))]
        return {site.name: late[site.entry] for site in sites if isinstance(site, DescribedSite)}

    def _late(self, number: int, sizes: dict[str, Any], rows: int | None) -> Spans | LateSpans:
        entry = self._told.layers[number]
        given = {
            key: None if told is None else self._number(f"layers.{number}.{key}", told, sizes)
            for key, told in (("queries", entry.queries), ("keys", entry.keys))
        }
        at = cache(partial(self._at, number, sizes, rows))
        queries, keys = given["queries"], given["keys"]
        if queries is not None and keys is not None:
            return at(queries, keys)
        return LateSpans(at, entry.call, queries, keys, bool(entry.text))

    def _at(self, number: int, sizes: dict[str, Any], rows: int | None, queries: int, keys: int) -> Spans:
        entry, path = self._told.layers[number], f"layers.{number}"
        sizes = {"queries": queries, "keys": keys, **sizes}
        references = [
            self._tokens(f"{path}.references.{place}", told, keys, sizes)
            for place, told in enumerate(entry.references)
        ]
        words = [place for each in entry.text for place in self._range(f"{path}.text", each, keys, sizes)]
        text = _where(words) if words else None
        taken = set(words)
        for place, reference in enumerate(references):
            own = set(reference.positions().tolist())
            if taken & own:
                raise self._refused(
                    f"{path}.references.{place}.at", f"{len(taken & own)} keys that are named twice"
                )
            taken |= own
        generated = self._tokens(f"{path}.generated", entry.generated, queries, sizes)
        return Spans(
            queries, keys, generated, tuple(references), text, entry.static_keys, entry.call,
            rows=rows, heads=entry.heads,
        )  # fmt: skip

    def _tokens(self, path: str, told: Generated | Reference, total: int, sizes: Mapping[str, Any]) -> Tokens:
        """Tokens by their ranges, which must be as many as their grid has places."""
        places = [place for each in told.at for place in self._range(f"{path}.at", each, total, sizes)]
        prefix = self._number(f"{path}.prefix", told.prefix, sizes) if isinstance(told, Reference) else 0
        grid = (0, 0)
        if told.grid == "latents":
            grid = self._as_latents(path, len(places) - prefix, sizes)
        elif told.grid is not None:
            rows, columns = (self._number(f"{path}.grid", text, sizes) for text in told.grid)
            grid = rows, columns
        elif isinstance(told, Reference):
            prefix = len(places)
        layout = TokenLayout(grid, prefix)
        if layout.tokens != len(places) or not places or len(set(places)) < len(places) or min(grid) < 0:
            prefixed = f"{prefix} + " if prefix else ""
            raise self._refused(
                path, f"{len(set(places))} of {total} tokens for {prefixed}{grid[0]}x{grid[1]} places",
                "correct at:, grid: or prefix: of the adapter's description",
            )  # fmt: skip
        return Tokens(_where(places), layout)

    def _as_latents(self, path: str, tokens: int, sizes: Mapping[str, Any]) -> tuple[int, int]:
        """The latents' grid, or every k-th of its rows and columns, with so many places."""
        rows, columns = (
            self._number(f"{path}.grid", name, sizes) for name in ("latent_rows", "latent_columns")
        )
        grids = [
            (rows // k, columns // k) for k in range(1, max(2, rows + 1)) if not (rows % k or columns % k)
        ]
        grid = next((grid for grid in grids if grid[0] * grid[1] == tokens), None)
        if grid is None:
            raise self._refused(
                f"{path}.grid", f"{tokens} tokens, which are no part of latents of {rows}x{columns}",
                "say at: which tokens, or the grid's rows and columns",
            )  # fmt: skip
        return grid

    def _number(self, path: str, text: str, sizes: Mapping[str, Any]) -> int:
        try:
            return evaluate(text, sizes)
        except ValueError as error:
            raise self._refused(path, str(error)) from None

    def _range(self, path: str, text: str, total: int, sizes: Mapping[str, Any]) -> range:
        try:
            return positions(text, total, sizes)
        except ValueError as error:
            raise self._refused(path, str(error)) from None

    def _refused(
        self, path: str, got: str, remedy: str = "correct the adapter's description"
    ) -> CaptureError:
        return CaptureError(f"adapter {self.name!r}: {path}", got=got, remedy=remedy)

    def latents(self, arguments: Mapping[str, Any]) -> torch.Tensor | None:
        """See `Adapter.latents`: the argument ``latents``, or the first tensor of three or more axes."""
        if self._told.latents is None:
            return super().latents(arguments)
        found = self._argument("latents", self._told.latents, arguments)
        return found if isinstance(found, torch.Tensor) else None

    def _argument(self, key: str, name: str, arguments: Mapping[str, Any]) -> Any:
        if name not in arguments:
            raise UnknownName(f"argument of the denoiser ({key} of adapter {self.name!r})", name, arguments)
        return arguments[name]

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        """See `Adapter.roles`: the row blocks of ``guidance``; one block alone is conditional."""
        known: dict[int, tuple[str, ...]] = {1: ("cond",)}
        if len(self._told.guidance) == 1:
            known[len(self._told.guidance[0])] = tuple(self._told.guidance[0])
        return self._known_roles(rows_per_sample, known)

    def calls(self, pipe: Any) -> tuple[str, ...]:
        """See `Adapter.calls`: the roles of ``guidance`` where each makes a call of its own."""
        calls = self._told.guidance
        return tuple(role for call in calls for role in call) if len(calls) > 1 else ()

    def schedule(self, pipe: Any, first: float, tolerance: float) -> list[float]:
        """See `Adapter.schedule`: those at the pipeline's attribute ``schedule``, or its scheduler's."""
        if self._told.schedule is None:
            return super().schedule(pipe, first, tolerance)
        try:
            timesteps = [float(t) for t in attrgetter(self._told.schedule)(pipe)]
        except (AttributeError, TypeError, ValueError) as error:
            raise self._refused("schedule", f"{type(error).__name__}: {error}") from None
        return starting_at(timesteps, first, tolerance, f"{len(timesteps)} of {self._told.schedule}")

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        """See `Adapter.timestep`: the argument ``timestep``, in the unit of the schedule."""
        told = self._told.timestep
        value = self._argument("timestep", told.argument, arguments)
        return value if told.times == 1 else value * told.times

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """See `Adapter.inputs`: the ``inputs`` of the description."""
        return self._told.inputs


def _where(places: Sequence[int]) -> slice | torch.Tensor:
    """Tokens one after the other as a slice, others by their places."""
    last = places[-1] + 1 if places else 0
    if list(places) == list(range(places[0], last) if places else ()):
        return slice(places[0], last)
    return torch.tensor(places)


def _check_fast_path(layer: str, module: nn.Module) -> None:
    """Torch's own attention module has a kernel that rounds otherwise, and is not used while one looks."""
    own = any(isinstance(each, nn.MultiheadAttention) for each in module.modules())
    if own and not module.training and torch.backends.mha.get_fastpath_enabled():
        raise CaptureError(
            f"layer {layer!r}: a torch.nn.MultiheadAttention",
            expected="one without its fast path, which shows no query and key",
            got="the fast path",
            remedy="torch.backends.mha.set_fastpath_enabled(False), before anything is generated",
        )
