"""What a described adapter says of a model: its layers, where tokens stand, guidance, timestep."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from i2am.pipeline.adapters.generic.expressions import Number, TokenRange
from i2am.storage.configuration.base import Name, Strict

Path: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.\w+)*$", max_length=300)]
"""Attributes, one below the other: ``model.diffusion_model``."""


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _grid(value: Any) -> Any:
    """``latents``, or two numbers; one error for both."""
    if value in (None, "latents"):
        return value
    try:
        return TypeAdapter(tuple[Number, Number]).validate_python(value)
    except ValidationError:
        raise ValueError("latents, or [rows, columns], each a number or an expression") from None


Ranges: TypeAlias = Annotated[
    list[TokenRange],
    BeforeValidator(_several),
    Field(min_length=1, description="one range of tokens, or several, one after the other"),
]
Grid: TypeAlias = Annotated[Literal["latents"] | tuple[str, str] | None, BeforeValidator(_grid)]


class Timestep(Strict):
    """The denoiser's argument that holds the timestep; ``times`` makes the scheduler's value of it."""

    argument: Name
    times: float = 1.0


class PositionIds(Strict):
    """The denoiser's argument that says where tokens stand, [token, axis] or [row, token, axis]."""

    argument: Name
    axes: Annotated[
        list[str], Field(description="what each axis is: image, row and column, others by any name")
    ] = ["image", "row", "column"]


class Generated(Strict):
    """Which queries are the image being generated; ``latents``: as the latents lie, or every k-th of them."""

    at: Ranges = [":"]
    grid: Annotated[Grid, Field(description="latents, or rows and columns")] = "latents"


class Reference(Strict):
    """Which keys are a reference, row by row; without ``grid`` its tokens have no place."""

    at: Ranges = [":"]
    grid: Grid = None
    prefix: Annotated[Number, Field(description="leading tokens without a place")] = "0"


class Layers(Strict):
    """Attention layers that are alike: modules, which of their attention calls, and its tokens."""

    modules: Annotated[
        list[str],
        BeforeValidator(_several),
        Field(min_length=1, description="paths or patterns, from the pipeline's attribute on"),
    ]
    name: Annotated[str, Field(pattern=r"^\w*$", description="ends the layers' names")] = ""
    call: Annotated[
        int | None,
        Field(ge=0, description="which call of a module, of those with such sizes; None: the only one"),
    ] = None
    queries: Annotated[Number | None, Field(description="of the call; None: any number")] = None
    keys: Number | None = None
    generated: Generated = Generated()
    references: Annotated[list[Reference], Field(min_length=1)]
    first_reference: Annotated[
        int, Field(ge=0, description="which of the model's references the first of these is, from 0")
    ] = 0
    heads: Annotated[
        int | None, Field(ge=1, description="among the rows of the call, those of one row side by side")
    ] = None
    text: Annotated[
        list[TokenRange], BeforeValidator(_several), Field(description="keys of words, as `at`")
    ] = []
    static_keys: Annotated[bool, Field(description="the references' keys do not change over time")] = False
    output: Annotated[
        Path | None, Field(description="linear layer that takes the mixed values: in the module or beside it")
    ] = None
    stream: Annotated[
        Path | None, Field(description="what first takes the stream that the output is added to")
    ] = None
    stream_first: Annotated[
        bool, Field(description="it has the first queries' tokens, where it has fewer; else the last ones'")
    ] = False


def _of_calls(guidance: list[list[str]]) -> list[list[str]]:
    roles = [role for call in guidance for role in call]
    if len(set(roles)) < len(roles) or (len(guidance) > 1 and len(roles) > len(guidance)):
        raise ValueError(
            "one call of several row blocks, [[uncond, cond]], or calls of one, [[cond], [uncond]]"
        )
    return guidance


class Description(Strict):
    """A model, as `GenericAdapter` takes it."""

    EXAMPLE: ClassVar[str] = "i2am probe MODULE:FACTORY --write FILE drafts one"

    name: Annotated[str | None, Field(pattern=r"^[\w.-]+$", max_length=100)] = None
    denoiser: Annotated[Path, Field(description="the pipeline's attribute that holds the denoiser")]
    timestep: Annotated[
        Timestep, BeforeValidator(lambda given: {"argument": given} if isinstance(given, str) else given)
    ] = Timestep(argument="timestep")
    schedule: Annotated[
        Path | None, Field(description="the pipeline's attribute with all timesteps; None: its scheduler's")
    ] = None
    latents: Annotated[
        Name | None, Field(description="the denoiser's argument; None: the first tensor of 3 or more axes")
    ] = None
    position_ids: Annotated[
        PositionIds | None,
        BeforeValidator(lambda given: {"argument": given} if isinstance(given, str) else given),
    ] = None
    guidance: Annotated[
        list[Annotated[list[Name], Field(min_length=1)]],
        Field(min_length=1, description="calls of a step, each a list of row blocks"),
        AfterValidator(_of_calls),
    ] = [["cond"]]
    inputs: Annotated[
        dict[str, Name], Field(description="argument of the pipeline's call -> image or text of a sample")
    ] = {}
    layers: Annotated[list[Layers], Field(min_length=1)]
