"""Read a YAML configuration; an error is one line that names the key, what was expected, and a remedy."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from i2am.flows.config.bounded_file import read_bounded
from i2am.flows.config.models import CaptureConfig
from i2am.flows.config.validate import EXAMPLE, Model, shortened, validate
from i2am.flows.console.output import one_line
from i2am.storage.errors import ConfigError

MAX_BYTES = 1 << 17
"""Bytes of a configuration file; PyYAML takes some seconds for as many."""

_INTEGER, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_AS_TEXT = (_INTEGER, _FLOAT, "tag:yaml.org,2002:timestamp")


class _Loader(yaml.SafeLoader):
    """The safe loader, with duplicate keys refused and only plain decimal numbers read as numbers.

    YAML 1.1 would read the slice ``1:10`` as 70 (base sixty) and 010 as 8. Dates stay text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class's own attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _AS_TEXT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_scalar(self, node: Any) -> Any:
        if "\0" in node.value:  # the escape in quotes: no path may have it
            raise yaml.constructor.ConstructorError(None, None, "a NUL character", node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {shortened(key)}", key_node.start_mark
                )
            if isinstance(key, Hashable):
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
    """Read and check one configuration file."""
    raw = read_bounded(Path(path), "configuration", MAX_BYTES, f"correct the path; {EXAMPLE}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path}", expected="UTF-8 text", got="other bytes", remedy="is it the right file?"
        ) from None
    return parse_config(text, model, str(path))


def load_capture(path: str | Path, out: str | None = None) -> CaptureConfig:
    """Read the configuration of a capture and make its paths absolute.

    Paths in the file are relative to its folder; `out`, which replaces the file's, to the working directory.
    """
    config = load_config(path, CaptureConfig)
    base = Path(os.path.realpath(path)).parent
    source: Any = config.pipeline
    if source.kind == "pretrained":
        adapters = [
            adapter.model_copy(update={"location": _local(adapter.location, base)})
            for adapter in source.ip_adapters
        ]
        found: dict[str, Any] = {"location": _local(source.location, base), "ip_adapters": adapters}
        if source.quantization is not None and source.quantization.from_single_file is not None:
            file = {"from_single_file": _absolute(source.quantization.from_single_file, base)}
            found["quantization"] = source.quantization.model_copy(update=file)
        source = _absolute_paths(source, base).model_copy(update=found)
    if source.kind == "factory":
        source = source.model_copy(update={"folder": base})
    place = _absolute(config.out, base) if out is None else _absolute(out, Path.cwd())
    samples = _absolute_paths(config.samples, base)
    return config.model_copy(update={"out": place, "samples": samples, "pipeline": source})


def _absolute_paths(model: Model, base: Path) -> Model:
    """`model` with every path in it, and in the models it holds, read from `base`."""
    changes: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Path):  # realpath: a loop of links is an error of the reader
            changes[name] = Path(os.path.realpath(base / value.expanduser()))
        elif isinstance(value, BaseModel):
            changes[name] = _absolute_paths(value, base)
    return model.model_copy(update=changes)


def _local(location: str, base: Path) -> str:
    """A folder beside the configuration by its absolute path; a hub id as it is."""
    return os.path.realpath(base / location) if os.path.isdir(base / location) else location


def _absolute(location: str, base: Path) -> str:
    """An absolute path; a URL as it is."""
    return location if "://" in location else os.path.normpath(base / Path(location).expanduser())


def parse_config(text: str, model: type[Model], where: str) -> Model:
    """Check the text of a configuration; `where` names it in errors."""
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(
            f"{where}: not valid YAML{line}: {str(error.problem)[:300]}", remedy="correct the file"
        ) from None
    except RecursionError:
        raise ConfigError(f"{where}: not valid YAML: nested too deeply", remedy="correct the file") from None
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError, TypeError) as error:
        # the last four: PyYAML's own constructors raise them, such as for "!!timestamp x"
        raise ConfigError(f"{where}: not valid YAML: {one_line(error)}", remedy="correct the file") from None
    if not isinstance(data, dict):
        kind = "an empty file" if data is None else f"a {type(data).__name__}"
        raise ConfigError(where, expected="keys and values such as 'out: run.zarr'", got=kind, remedy=EXAMPLE)
    return validate(data, model, where)
