"""Check data against a configuration model; what is wrong becomes one line in the words of the file."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from i2am.storage.errors import ConfigError
from i2am.storage.redaction import redact, remember

Model = TypeVar("Model", bound=BaseModel)

EXAMPLE = "i2am demo --out DIR writes an example, DIR/capture.yaml"
"""A remedy: every installation has it."""


def example_of(model: type[BaseModel]) -> str:
    """The remedy of a file that is not there, or not whole; a model may have one of its own."""
    return str(getattr(model, "EXAMPLE", EXAMPLE))


def validate(data: dict[str, Any], model: type[Model], where: str) -> Model:
    remember(data)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # a typo also makes its key missing: unknown keys come first
        problems = sorted(error.errors(include_url=False), key=lambda p: p["type"] != "extra_forbidden")
        raise _explain(problems[0], model, where) from None


def override(config: Model, **changes: Any) -> Model:
    """`config` with options of the command line, written as in the file; None leaves what is there."""
    given = {name: value for name, value in changes.items() if value is not None}
    data = config.model_dump(by_alias=True, exclude_unset=True) | given
    return validate(data, type(config), "command line") if given else config


def _explain(problem: Any, model: type[BaseModel], where: str) -> ConfigError:
    """A problem that pydantic found, in the words of the file."""
    kind, keys = problem["type"], [str(part) for part in problem["loc"]]
    if keys and (field := model.model_fields.get(keys[0])) is not None and field.discriminator:
        del keys[1:2]  # the tag of the union, which is no key of the file
    if kind == "union_tag_not_found":
        keys.append("kind")
    path = shortened(".".join(keys) or "the file")
    if kind == "extra_forbidden":
        known = sorted(_keys(model) - {keys[-1]})
        top = ", ".join(sorted(field.alias or name for name, field in model.model_fields.items()))
        close = difflib.get_close_matches(keys[-1][:100], known, n=1, cutoff=0.5)
        remedy = f"did you mean {close[0]!r}?" if close else f"those of the file are {top}"
        return ConfigError(f"{where}: unknown key {path}", remedy=remedy)
    if kind in ("missing", "union_tag_not_found"):
        return ConfigError(f"{where}: missing key {path}", remedy=f"add it; {example_of(model)}")
    expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected, got = expected[:1].lower() + expected[1:400], problem["input"]
    if kind == "union_tag_invalid":
        expected, got = f"one of {problem['ctx']['expected_tags']}", problem["ctx"]["tag"]
    got = redact(got)
    for key in keys:
        got = redact({key: got})[key]
    return ConfigError(f"{where}: {path}", expected=expected, got=shortened(got) if keys else None)


def _keys(annotation: Any) -> set[str]:
    """Every key of the models that a type annotation names, at any depth."""
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return {key for part in get_args(annotation) for key in _keys(part)}
    fields = annotation.model_fields.items()
    return {key for name, field in fields for key in (field.alias or name, *_keys(field.annotation))}


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
