"""The base of every configuration model, and the field types that several of them share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Positive: TypeAlias = Annotated[int, Field(ge=1, le=16384)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 63)]
"""What torch and NumPy both take."""

Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
Size: TypeAlias = tuple[Positive, Positive]
"""Rows and columns."""


class Strict(BaseModel):
    """Base of every configuration model: no unknown key, no infinity or NaN, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)
