"""The base of every configuration model, and the field types that several of them share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from i2am.storage.redaction import redact

Positive: TypeAlias = Annotated[int, Field(ge=1, le=16384)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 63)]
"""What torch and NumPy both take."""

Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
IMAGE_NAME = r"[A-Za-z_]\w*(-\d(_mask)?)?"
"""As `Name`, or that of a further reference: reference-1."""


def _image_names(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and re.fullmatch(IMAGE_NAME, name) for name in names):
        raise ValueError(f"a name of pattern {IMAGE_NAME}, or a list of them")
    return value


ImageNames: TypeAlias = Annotated[str | list[str], BeforeValidator(_image_names)]
"""An image or a text of a sample, or several."""
Size: TypeAlias = tuple[Positive, Positive]
"""Rows and columns."""

DEEPEST = 32
"""Levels of lists and mappings in a value that a model or a library takes."""


MOST = 10_000
"""Values in it; a list that holds itself would have more."""


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Check that options are what JSON holds: they go to other processes and into the run."""
    left: list[tuple[Any, int]] = [(options, 0)]
    for count, (value, depth) in enumerate(left):
        if depth > DEEPEST or count > MOST:
            raise ValueError(f"at most {MOST} values in at most {DEEPEST} levels")
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise ValueError("keys that are text")
            left += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, (list, tuple)):
            left += [(item, depth + 1) for item in value]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("numbers without infinity and NaN")
        elif not isinstance(value, (str, int, float, type(None))):
            raise ValueError(f"numbers, texts, lists and mappings only, no {type(value).__name__}")
        elif isinstance(value, int) and abs(value) >= 1 << 63:
            raise ValueError("integers of at most 64 bits")
    return options


Free: TypeAlias = Annotated[dict[str, Any], AfterValidator(_plain)]
"""What goes to a library or a model as it is."""

WITH_SECRETS = {"secrets": True}
"""The context of `model_dump` for the one reader that needs them: a capture process."""


class Strict(BaseModel):
    """Base of every configuration model: no unknown key, no infinity or NaN, no change after loading.

    As JSON, and as text, it has no secrets: what Prefect shows and what a run keeps is made of these.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _without_secrets(self, serialize: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        data = serialize(self)
        return redact(data) if info.mode == "json" and info.context != WITH_SECRETS else data

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, value if isinstance(value, BaseModel) else redact(value, name or "")
