"""The contract of an adapter: all that capture has to know about one family of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
    """

    name: str
    query: nn.Module
    key: nn.Module
    grid: nn.Module
    heads: int
    scale: float
    module_class: str
    static_key: bool = True


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """How reference tokens stand: ``prefix`` without a place, then ``grid`` (rows, columns), row by row."""

    grid: tuple[int, int]
    prefix: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens in all."""
        return self.prefix + self.grid[0] * self.grid[1]


class Adapter(Protocol):
    """Knowledge of one family of pipelines. Adapters hold no state; one instance serves every capture."""

    name: str
    """What users write in ``adapter=`` and configurations."""

    def matches(self, pipe: Any) -> bool:
        """Whether this adapter is meant for ``pipe``."""

    def denoiser(self, pipe: Any) -> nn.Module:
        """The module whose every call is one step; its call carries the timestep as second argument."""

    def sites(self, pipe: Any) -> Sequence[Site]:
        """Every layer that attends to the reference, in the order of the model's own modules.

        Raises
        ------
        CaptureError
            If there is none, or if one computes its scores from something else than the projections' outputs.
        """

    def layout(self, pipe: Any, tokens: int) -> TokenLayout:
        """Where the ``tokens`` reference tokens of a key stand.

        Raises
        ------
        CaptureError
            If the model's layout has another number of tokens.
        """

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        """Guidance role of each block of rows in a denoiser call, in order: ``("uncond", "cond")``, say.

        Raises
        ------
        CaptureError
            If the family never has so many rows for one sample.
        """

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """The pipeline's argument for each image that it takes: ``{"image": "source", ...}``."""
