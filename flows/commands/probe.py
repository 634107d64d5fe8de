"""``i2am probe``: every attention call of a pipeline that no adapter knows, and a draft of an adapter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands.options import AsJson, Overwrite
from i2am.flows.console.output import counted, log, print_json, print_line, print_table

if TYPE_CHECKING:
    from i2am.pipeline.drafting.draft import Draft


def probe(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY",
            help="Function that returns the pipeline, or (pipeline, call); or a configuration (YAML).",
        ),
    ],
    call: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="Function that makes it generate one sample: call(pipeline)."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Denoiser steps after which it is stopped.")] = 2,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the draft here: adapter: FILE takes it.")
    ] = None,
    overwrite: Overwrite = False,
    device: Annotated[str, typer.Option(help="Given to the factory, if it takes one.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Given to the factory, if it takes one.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """The attention calls of a pipeline; a draft of an adapter.

    The pipeline generates one sample for a few steps; its denoiser is called again with noise on each of its
    arguments, to see which tokens depend on which. Lines of the draft with CHECK are guesses.
    """
    from i2am.flows.capture.load_pipeline import check_installed

    check_installed()
    if write is not None and write.exists() and not overwrite:
        from i2am.storage.errors import AlreadyExists

        raise AlreadyExists(f"--write {write}", expected="no file", got="one", remedy="give --overwrite")
    pipe, generate = _pipeline(factory, call, device, dtype)
    from i2am.pipeline.drafting.draft import draft

    found = draft(pipe, generate, steps)
    if as_json:
        print_json(_facts(found))
    else:
        _print(found)
    if found.problem is not None:
        raise found.problem
    if write is None and not as_json:
        print_line("")
        for line in found.text.splitlines():
            print_line(line)
    elif write is not None:
        write.write_text(found.text)
        log(f"i2am: wrote {write}; go through its lines with CHECK, then capture with adapter: {write.name}")


def _pipeline(factory: str, call: str | None, device: str, dtype: str) -> tuple[Any, Callable[[], object]]:
    """The pipeline, and what makes it generate one sample."""
    from i2am.storage.configuration.yaml_file import ENDINGS
    from i2am.storage.errors import InputError

    if factory.endswith(ENDINGS):
        return _configured(Path(factory))
    given = {"device": device, "dtype": dtype}
    made = _function("MODULE:FACTORY", factory, given)
    pipe, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if call is not None:
        return pipe, lambda: _function("--call", call, {}, pipe)
    if not callable(own):
        raise InputError(
            f"how to call the pipeline of {factory!r}",
            expected="--call MODULE:FUNCTION, or a factory that returns (pipeline, call)",
            got=f"a {type(made).__name__}",
            remedy="write call(pipeline), which generates one sample in a few steps",
        )
    from i2am.pipeline.foreign_errors import as_capture_error

    def generate() -> None:
        with as_capture_error(f"the call of the pipeline of {factory!r} failed", "correct the function"):
            own(pipe)

    return pipe, generate


def _configured(path: Path) -> tuple[Any, Callable[[], object]]:
    from i2am.flows.capture.load_pipeline import call_inputs, load_pipeline
    from i2am.flows.config.load_yaml import load_capture
    from i2am.flows.datasets.open import open_samples
    from i2am.pipeline.adapters.registry import adapters
    from i2am.pipeline.jobs import Call
    from i2am.storage.errors import ConfigError

    config = load_capture(path)
    samples = open_samples(config)
    pipe = load_pipeline(config)
    known = config.adapter is not None or any(each.matches(pipe) for each in adapters().values())
    if config.inputs is None and not known:
        raise ConfigError(
            f"{path}: inputs", expected="argument of the pipeline's call -> image or text of a sample",
            got="none, and no adapter that knows them", remedy="add it",
        )  # fmt: skip
    how = Call(call_inputs(config, pipe), config.call)
    return pipe, lambda: how(pipe, [samples.load(samples.ids[0])])


def _function(option: str, name: str, given: dict[str, Any], *arguments: Any) -> Any:
    """Call the user's function, with what it takes of ``given``."""
    from i2am.flows.capture.load_pipeline import check_device, find_function, of_the_function
    from i2am.flows.config.models import FactorySource
    from i2am.storage.configuration.validate import validate

    data = {"kind": "factory", "function": name}
    source = validate(data, FactorySource, option).model_copy(update={"folder": Path.cwd()})
    function = find_function(source)
    if given:
        check_device(given["device"])
    parameters = inspect.signature(function).parameters
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    with of_the_function(source):
        return function(
            *arguments, **{key: value for key, value in given.items() if takes_all or key in parameters}
        )


def _facts(found: Draft) -> dict[str, Any]:
    from i2am.pipeline.drafting.draft import grouped

    return {
        "attention": [
            {
                "layers": group.pattern,
                "count": group.layers,
                "class": group.first.module_class,
                "kernel": group.first.kernel,
                **dict(zip(("row", "head", "query", "key", "dim"), group.first.shape, strict=True)),
                "mask": group.first.mask,
                "scale": None if group.first.scale is None else float(f"{group.first.scale:.6g}"),
                "calls": group.calls,
            }
            for group in grouped(found.watched.attention)
        ],
        "left_out": {path: why for (path, _), why in found.left.items()},
        "draft": found.text or None,
    }


def _print(found: Draft) -> None:
    columns = [
        "layers",
        "count",
        "class",
        "kernel",
        "row",
        "head",
        "query",
        "key",
        "dim",
        "mask",
        "scale",
        "calls",
    ]
    rows = [
        ["" if each[column] is None else each[column] for column in columns]
        for each in _facts(found)["attention"]
    ]
    print_table(columns, rows, right=(1, *range(4, 9), 10, 11))
    if found.left:
        whys = sorted(set(found.left.values()))
        told = (f"{counted(list(found.left.values()).count(why), 'layer')}, {why}" for why in whys)
        print_line(f"left out of the draft: {'; '.join(told)}")
