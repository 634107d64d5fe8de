"""The packages as a whole: public names, light imports, layering."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_analysis_and_storage_load_no_torch() -> None:
    python(
        "import i2am.analysis, i2am.storage, sys; assert not {'torch','diffusers','prefect'} & set(sys.modules)"
    )


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


def test_every_public_name_is_what_it_says_whatever_was_imported_before() -> None:
    # A submodule that has a public name's name would hide it once it is imported.
    python(
        "import importlib, pkgutil, types\n"
        "import i2am\n"
        "for info in pkgutil.walk_packages(i2am.__path__, 'i2am.'):\n"
        "    if not info.name.endswith('__main__'): importlib.import_module(info.name)\n"
        "for name in i2am.__all__:\n"
        "    assert not isinstance(getattr(i2am, name), types.ModuleType), name\n"
        "assert i2am.__version__ and set(i2am.__all__) <= set(dir(i2am))\n"
    )


def test_the_promised_names_are_there() -> None:
    promised = "create_run open_run LayerSpec attribution_maps imacs verify plan capture"
    python(f"import i2am\nfor name in {promised.split()!r}: assert callable(getattr(i2am, name)), name")


def test_an_unknown_name_is_an_attribute_error() -> None:
    import i2am

    with pytest.raises(AttributeError, match="attention"):
        _ = i2am.attention


def test_the_layering_holds() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_wheel_holds_what_runs_need(tmp_path: Path) -> None:
    """Everything in the packages is in the wheel, weights and templates too, and nothing of the tests is."""
    packages = ("storage", "pipeline", "analysis", "flows")
    for name in ("i2am", *packages):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = [path for name in packages for path in (tmp_path / name).rglob("*.*") if path.is_file()]
    door = {"i2am/__init__.py", "i2am/__init__.pyi", "i2am/__main__.py", "i2am/py.typed"}
    assert held == {f"i2am/{path.relative_to(tmp_path)}" for path in files} | door
