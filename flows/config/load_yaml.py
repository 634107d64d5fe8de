"""Read a YAML configuration: bounded, safe, with errors that name key, expectation and remedy."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from i2am.flows.config.bounded_file import read_bounded
from i2am.flows.config.models import CaptureConfig
from i2am.storage.errors import ConfigError

MAX_BYTES = 1 << 20
"""Bytes of a configuration file; one of a megabyte is a mistake or an attack."""

MAX_VALUES = 50_000
"""Keys, values and lists in a configuration; more would take the parser half a minute."""

Model = TypeVar("Model", bound=BaseModel)

_INTEGER, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_NO_TEXT = re.compile("[\\0\ud800-\udfff]")
_RESOLVED_HERE = (_INTEGER, _FLOAT, "tag:yaml.org,2002:timestamp")


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases (they make small files huge), tags and silent duplicates.

    Dates stay text, and so do numbers in base sixty: YAML 1.1 would read the slice ``1:10`` as 70, and 010
    as 8.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class's own attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _RESOLVED_HERE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse what no configuration needs, compose anything else."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.values += 1
        refused = None
        if isinstance(event, yaml.events.AliasEvent):
            refused = "aliases are not allowed"
        elif event.tag is not None:
            refused = f"tags such as {_short(event.tag)} are not allowed; quote what is text"
        elif self.values > MAX_VALUES:
            refused = f"more than {MAX_VALUES} values"
        elif _NO_TEXT.search(getattr(event, "value", "")):
            refused = "a NUL character, or half of a surrogate pair, in a text"
        if refused:
            raise yaml.composer.ComposerError(None, None, refused, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that stands twice."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {_short(key)} stands there twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def _integer(loader: yaml.SafeLoader, node: Any) -> int:
    return int(str(loader.construct_scalar(node)).replace("_", ""))


_Loader.add_implicit_resolver(_INTEGER, re.compile(r"[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
_Loader.add_constructor(_INTEGER, _integer)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$"),
    list("-+.0123456789"),
)


def load_config(path: str | Path, model: type[Model]) -> Model:
    """Read and check one configuration file.

    Parameters
    ----------
    path
        YAML file of at most one megabyte.
    model
        ``CaptureConfig``, ``AnalysisConfig``, ...

    Returns
    -------
    Model
        The checked configuration.

    Raises
    ------
    NotFound, NoPermission
        The file is not there or may not be read.
    ConfigError
        It is not YAML, too large, or has an unknown, missing or wrong key.
    """
    return parse_config(_read(Path(path)), model, str(path))


def load_capture(path: str | Path, out: str | None = None) -> CaptureConfig:
    """Read the configuration of a capture and make its paths absolute.

    Parameters
    ----------
    path
        YAML file; relative paths in it are read from its folder.
    out
        The run to write instead of the one that the file names; read from the working directory.

    Returns
    -------
    CaptureConfig
        Checked, with absolute paths; URLs stay as they are.

    Raises
    ------
    NotFound, NoPermission, ConfigError
        As for :func:`load_config`.
    """
    config = load_config(path, CaptureConfig)
    base = Path(os.path.realpath(path)).parent
    changes: dict[str, Any] = {
        "out": _anchored(out, Path.cwd()) if out is not None else _anchored(config.out, base)
    }
    changes["samples"] = _rooted(config.samples, base)
    if config.pipeline.kind == "pretrained":
        adapters = [
            adapter.model_copy(update={"location": _local(adapter.location, base)})
            for adapter in config.pipeline.ip_adapters
        ]
        found = {"location": _local(config.pipeline.location, base), "ip_adapters": adapters}
        changes["pipeline"] = config.pipeline.model_copy(update=found)
    if config.pipeline.kind == "factory":
        changes["pipeline"] = config.pipeline.model_copy(update={"folder": base})
    return config.model_copy(update=changes)


def _rooted(model: Model, base: Path) -> Model:
    """``model`` with every path in it, and in the models it holds, read from ``base``."""
    changes: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Path):
            changes[name] = Path(
                os.path.realpath(base / value.expanduser())
            )  # a loop is an error of its reader
        elif isinstance(value, BaseModel):
            changes[name] = _rooted(value, base)
    return model.model_copy(update=changes)


def _local(location: str, base: Path) -> str:
    """A folder beside the configuration by its absolute path; a hub id as it is."""
    return os.path.realpath(base / location) if os.path.isdir(base / location) else location


def _anchored(location: str, base: Path) -> str:
    """Make a path absolute; leave a URL alone."""
    return location if "://" in location else os.path.normpath(base / Path(location).expanduser())


def amended(config: Model, **changes: Any) -> Model:
    """Put options of the command line over a configuration.

    Parameters
    ----------
    config
        From a file, or the defaults.
    **changes
        Keys and values as they would stand in the file; None leaves what is there.

    Raises
    ------
    ConfigError
        If they are wrong, or do not fit the others.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        return config
    model = type(config)
    try:
        return model.model_validate(config.model_dump(by_alias=True, exclude_unset=True) | given)
    except ValidationError as error:
        raise _explain("command line", error, model) from None


def parse_config(text: str, model: type[Model], where: str) -> Model:
    """Check the text of a configuration; ``where`` names it in errors. See :func:`load_config`."""
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(
            f"{where}: not valid YAML{line}: {_cut(error.problem or '')}", remedy="correct the file"
        ) from None
    except RecursionError:
        raise ConfigError(f"{where}: not valid YAML: nested too deeply", remedy="correct the file") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{where}: not valid YAML: {_first_line(error)}", remedy="correct the file"
        ) from None
    if not isinstance(data, dict):
        raise ConfigError(
            where, expected="keys and values such as 'out: run.zarr'", got=_kind(data), remedy="see examples/"
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explain(where, error, model) from None


def _read(path: Path) -> str:
    raw = read_bounded(path, "configuration", MAX_BYTES, "see examples/ for one of each kind")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path}", expected="UTF-8 text", got="other bytes", remedy="is it the right file?"
        ) from None


def _explain(where: str, error: ValidationError, model: type[BaseModel]) -> ConfigError:
    """First problem of a validation, unknown keys before others: a typo also makes its key missing."""
    problems = sorted(error.errors(include_url=False), key=lambda p: p["type"] != "extra_forbidden")
    problem = problems[0]
    parents, models, keys = _walk(model, problem["loc"])
    path = _cut(".".join(keys) or "the file")
    if problem["type"] == "extra_forbidden":
        known = _keys(parents)
        close = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        return ConfigError(
            f"{where}: unknown key {path!r}",
            expected=None if close else f"one of {', '.join(known)}",
            remedy=f"did you mean {close[0]!r}?" if close else None,
        )
    if problem["type"] == "missing":
        return ConfigError(f"{where}: missing key {path!r}", remedy="add it; see examples/")
    expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    got = problem["input"]
    if problem["type"].startswith("union_tag"):
        tag = got.get("kind") if isinstance(got, dict) else got
        close = difflib.get_close_matches(str(tag), _tags(models), n=1, cutoff=0.5)
        return ConfigError(
            f"{where}: {path + '.kind'!r}",
            expected="one of " + ", ".join(sorted(_tags(models))),
            got=_short(tag),
            remedy=f"did you mean {close[0]!r}?" if close else None,
        )
    expected = _cut(expected[:1].lower() + expected[1:], 400)
    return ConfigError(f"{where}: {path!r}", expected=expected, got=_short(got))


def _walk(
    model: type[BaseModel], loc: tuple[int | str, ...]
) -> tuple[list[type[BaseModel]], list[type[BaseModel]], list[str]]:
    """Models at the parent of ``loc`` and at ``loc``; the keys as the user wrote them, without union tags."""
    parents: list[type[BaseModel]] = []
    models, keys = [model], list[str]()
    for part in loc:
        tagged = [m for m in models if part in _tags([m])]
        if tagged and len(models) > 1:
            models = tagged
            continue
        field = next(
            (f for m in models for name, f in m.model_fields.items() if part in (name, f.alias)), None
        )
        parents, models = models, _models(field.annotation) if field else []
        keys.append(str(part))
    return parents, models, keys


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Every configuration model named in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in get_args(annotation) for m in _models(part)]


def _tags(models: list[type[BaseModel]]) -> set[str]:
    """Values of ``kind`` that the models stand for."""
    return {
        tag for m in models if "kind" in m.model_fields for tag in get_args(m.model_fields["kind"].annotation)
    }


def _keys(models: list[type[BaseModel]]) -> list[str]:
    return sorted({f.alias or name for m in models for name, f in m.model_fields.items()})


def _short(value: Any) -> str:
    try:
        text = _cut(value if isinstance(value, str) else repr(value), 60)
    except ValueError:  # an integer of more digits than Python prints
        text = "a huge number"
    return repr(text) if isinstance(value, str) else text


def _cut(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _kind(data: Any) -> str:
    return "an empty file" if data is None else f"a {type(data).__name__}"


def _first_line(error: BaseException) -> str:
    return _cut((str(error).splitlines() or [type(error).__name__])[0])
