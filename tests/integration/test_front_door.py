"""The packages as a whole: public names, light imports, layering."""

from __future__ import annotations

import ast
import inspect
import json
import re
import rlcompleter
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import i2am

ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_analysis_and_storage_load_no_torch() -> None:
    loaded = "{'torch','diffusers','prefect'} & set(sys.modules)"
    python(f"import i2am.analysis, i2am.storage, sys; assert not {loaded}")


@pytest.mark.parametrize(
    "package", ["i2am", "i2am.storage", "i2am.analysis", "i2am.pipeline", "i2am.flows", "i2am.flows.cli"]
)
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    loaded = json.loads(python(f"import {package}, json, sys; print(json.dumps(sorted(sys.modules)))"))
    heavy = {
        "torch",
        "diffusers",
        "transformers",
        "prefect",
        "zarr",
        "dask",
        "xarray",
        "polars",
        "matplotlib",
        "distributed",
    }
    assert not heavy & set(loaded)


def test_help_and_version_load_nothing_heavy() -> None:
    out = python(
        "import sys; from i2am.flows.cli import main; status = main(['--help']); main(['--version'])\n"
        "heavy = {'torch','prefect','zarr','numpy','dask','xarray','pydantic','rich'} & set(sys.modules)\n"
        "assert status == 0 and not heavy, heavy"
    )
    for command in ("demo", "plan", "capture", "inspect", "verify", "analyze", "maps", "imacs"):
        assert f"\n  {command} " in out
    assert out.strip().splitlines()[-1].startswith("i2am 0.")


def stub_names() -> list[str]:
    """The names that the stub exports, in order."""
    tree = ast.parse((ROOT / "i2am" / "__init__.pyi").read_text())
    return [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


def test_the_stub_and_the_runtime_agree() -> None:
    assert sorted(stub_names()) == sorted(i2am.__all__) == dir(i2am)
    assert all(callable(getattr(i2am, name)) for name in stub_names())


def test_an_editor_completes() -> None:
    completer = rlcompleter.Completer({"i2am": i2am})
    assert completer.complete("i2am.attribution_m", 0) == "i2am.attribution_maps("


def public_members() -> Iterator[tuple[str, Any]]:
    """Every public function and class, with the public methods and properties that a class defines itself."""
    for name in i2am.__all__:
        public = getattr(i2am, name)
        yield name, public
        if inspect.isclass(public):
            for key, value in vars(public).items():
                value = getattr(value, "__func__", value)
                method = inspect.isfunction(value) and value.__qualname__ == f"{name}.{key}"
                if not key.startswith("_") and (method or isinstance(value, property)):
                    yield f"{name}.{key}", value


def lacking_in_docstring(public: Any) -> set[str]:
    """What the docstring of a function or class lacks: numpy's sections, or all in one line."""
    doc = inspect.getdoc(public) or ""
    if not doc:
        return {"docstring"}
    if isinstance(public, property) or (inspect.isclass(public) and issubclass(public, Exception)):
        return set()
    if re.search(r"[Ss]ee `|made by `", doc):  # another one says it
        return set()
    lines = [line.strip() for line in doc.splitlines()]
    sections = {title for title, rule in pairwise(lines) if rule and set(rule) == {"-"}}
    if inspect.isclass(public):
        return set() if sections & {"Parameters", "Attributes"} else {"Parameters"}
    signature = inspect.signature(public)
    parameters = set(signature.parameters) - {"self", "cls"}
    lacking = {name for name in parameters if not re.search(rf"\b{name}\b", doc)}
    body = ast.parse(textwrap.dedent(inspect.getsource(public)))
    raises = any(isinstance(node, ast.Raise) for node in ast.walk(body))
    if len(lines) == 1:
        return lacking | ({"Raise"} if raises and "Raise" not in doc else set())
    returns = signature.return_annotation not in ("None", None) and "Yields" not in sections
    needed = {"Parameters": parameters, "Returns": returns, "Raises": raises}
    return lacking | {title for title, need in needed.items() if need} - sections


def test_the_public_api_is_documented() -> None:
    lacking = {
        name: missing for name, public in public_members() if (missing := lacking_in_docstring(public))
    }
    assert not lacking


def test_every_public_name_is_what_it_says_whatever_was_imported_before() -> None:
    # A submodule that has a public name's name would hide it once it is imported.
    python(
        "import importlib, pkgutil, types\n"
        "import i2am\n"
        "for info in pkgutil.walk_packages(i2am.__path__, 'i2am.'):\n"
        "    if not info.name.endswith('__main__'): importlib.import_module(info.name)\n"
        "for name in i2am.__all__:\n"
        "    assert not isinstance(getattr(i2am, name), types.ModuleType), name\n"
        "assert i2am.__version__\n"
    )


def test_the_promised_names_are_there() -> None:
    promised = "create_run open_run LayerSpec attribution_maps imacs verify plan capture"
    assert set(promised.split()) <= set(stub_names())


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="attention"):
        _ = i2am.attention
