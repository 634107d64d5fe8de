"""The contract of an adapter: all that capture has to know about one family of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import nn


@dataclass(frozen=True, slots=True)
class Site:
    """One attention layer whose query and key are the outputs of two projections.

    Attributes
    ----------
    name
        Module path of the layer below the pipeline: its name in the store.
    query, key
        The projections; outputs [row, token, heads * head dim].
    grid
        Module whose first argument is the feature map [row, channel, rows, columns] that becomes the query
        tokens: the generated grid is read there, never inferred from a count.
    heads
        Attention heads.
    scale
        Factor on q·k.
    module_class
        Class of the attention module, for the record.
    static_key
        True where keys come from the reference alone and do not change over time.
    source
        Which of several references the keys belong to (an IP-Adapter's index).
    """

    name: str
    query: nn.Module
    key: nn.Module
    grid: nn.Module
    heads: int
    scale: float
    module_class: str
    static_key: bool = True
    source: int = 0


@dataclass(frozen=True, slots=True)
class JointSite:
    """One joint attention layer: query and key are read where they reach the attention call.

    Attributes
    ----------
    name
        Module path of the layer below the pipeline: its name in the store.
    module
        The attention module; its processor makes the call.
    """

    name: str
    module: nn.Module

    @property
    def module_class(self) -> str:
        """Class of the attention module, for the record."""
        return type(self.module).__name__


AnySite: TypeAlias = Site | JointSite


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """How reference tokens stand: ``prefix`` without a place, then ``grid`` (rows, columns), row by row."""

    grid: tuple[int, int]
    prefix: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens in all."""
        return self.prefix + self.grid[0] * self.grid[1]


@dataclass(frozen=True, slots=True)
class Spans:
    """Where the tokens of a joint sequence stand.

    Attributes
    ----------
    length
        Tokens in all: text, generated, references.
    start
        First generated token.
    grid
        Generated tokens as (rows, columns).
    references
        First token and layout of each reference, in order.
    """

    length: int
    start: int
    grid: tuple[int, int]
    references: tuple[tuple[int, TokenLayout], ...]


class Adapter(Protocol):
    """Knowledge of one family of pipelines. Adapters hold no state; one instance serves every capture.

    Most families need few of these methods: :class:`i2am.pipeline.adapters.defaults.Defaults` has the others.
    """

    name: str
    """What users write in ``adapter=`` and configurations."""

    tiled: bool
    """True where the pipeline may cut its latents into tiles and call the denoiser once for each."""

    def matches(self, pipe: Any) -> bool:
        """Whether this adapter is meant for ``pipe``."""

    def denoiser(self, pipe: Any) -> nn.Module:
        """The module whose call ends a step's work: a UNet, a transformer."""

    def companions(self, pipe: Any) -> Sequence[nn.Module]:
        """Modules called right before the denoiser with the same timestep, such as a ControlNet."""

    def sites(self, pipe: Any) -> Sequence[AnySite]:
        """Every layer that attends to the reference, in the order of the model's own modules.

        Raises
        ------
        CaptureError
            If there is none, or if one computes its scores from something else than the projections' outputs.
        """

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """Where the ``tokens`` reference tokens of a key stand; ``grid`` is that of the query's tokens.

        Raises
        ------
        CaptureError
            If the model's layout has another number of tokens.
        """

    def spans(self, pipe: Any, arguments: Mapping[str, Any]) -> Spans:
        """Where the tokens of a joint sequence stand, from the ``arguments`` of a denoiser call, by name.

        Raises
        ------
        CaptureError
            If the call has no reference.
        """

    def shared_reference(self, pipe: Any) -> bool:
        """Where latents are tiled: True if all tiles see the whole reference, False if each sees its part."""

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        """Guidance role of each block of rows in a denoiser call, in order: ``("uncond", "cond")``, say.

        Raises
        ------
        CaptureError
            If the family never has so many rows for one sample.
        """

    def calls(self, pipe: Any) -> tuple[str, ...]:
        """Roles of a step's successive calls where guidance, if on, makes separate calls; else empty."""

    def schedule(self, pipe: Any, first: float, tolerance: float) -> list[float]:
        """Timesteps of all steps of the generation, given that of its first call.

        Raises
        ------
        CaptureError
            If nothing announces them.
        """

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        """The timestep in the ``arguments`` of a denoiser call, in the unit of the schedule."""

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """The pipeline's argument for each image that it takes: ``{"image": "source", ...}``."""
