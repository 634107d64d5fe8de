"""The wheel in an environment of its own: what it adds, what runs from it, what type checkers see.

`i2am demo` runs from it too: test_demo.py.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest

import i2am
from tests.integration.installation import PACKAGES, ROOT, Installed, run, run_well, write_user_modules

USER_SCRIPT = """
import i2am
from i2am.pipeline.embedded.scenes import make_scene
from i2am.pipeline.embedded.weights import load_pipeline

pipe, scene = load_pipeline(), make_scene(3)
with i2am.capture(pipe, "run.zarr", samples=["a"], layers="*mid_block*") as cap:
    with cap.sample("a", **scene.images) as s:
        s.generated = pipe(scene.source, scene.mask, scene.reference, num_inference_steps=2).images[0]
maps = i2am.attribution_maps(i2am.open_run("run.zarr"), direction="g2r", store=False)
assert float(maps.sum()) > 0
"""

TYPED_SCRIPT = """
from pathlib import Path

import i2am
from i2am import LayerSpec


def study(pipe: object, out: Path) -> float:
    with i2am.capture(pipe, out / "run.zarr", samples=["a"], steps=slice(0, 4)) as cap:
        for id in cap.missing:
            with cap.sample(id) as s:
                s.annotate(seed=7)
    run = i2am.open_run(out / "run.zarr")
    layers: dict[str, LayerSpec] = dict(run.layers)
    maps = i2am.attribution_maps(run, direction="r2g", level="head")
    report = i2am.verify(out / "run.zarr")
    return float(maps.max()) if report.ok and layers else 0.0
"""

WRONG_SCRIPT = "import i2am\ni2am.capture(None, 3)\n"


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    write_user_modules(tmp_path)
    return tmp_path


def test_the_wheel_holds_what_runs_need(wheel: Path) -> None:
    """Everything in the packages is in the wheel, weights and templates too, and nothing of the tests is."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    tree = wheel.parent
    files = [path for name in PACKAGES for path in (tree / name).rglob("*.*") if path.is_file()]
    door = {"i2am/__init__.py", "i2am/__init__.pyi", "i2am/__main__.py", "i2am/py.typed"}
    assert held == {f"i2am/{path.relative_to(tree)}" for path in files} | door


def test_an_installation_adds_i2am_and_nothing_else(installed: Installed, tmp_path: Path) -> None:
    assert installed.added == {"i2am", f"i2am-{i2am.__version__}.dist-info"}
    assert installed.added_scripts == {"i2am"}
    where = run_well(installed.python, "-c", "import i2am; print(i2am.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.bin.parent)


def test_a_users_own_modules_of_the_same_names_are_not_in_the_way(
    installed: Installed, user_folder: Path
) -> None:
    (user_folder / "script.py").write_text(USER_SCRIPT)
    run_well(installed.python, "script.py", cwd=user_folder)
    for command in ([installed.python, "-m", "i2am"], [installed.bin / "i2am"]):
        assert json.loads(run_well(*command, "verify", "run.zarr", "--json", cwd=user_folder))["ok"]


@pytest.fixture
def typed_folder(tmp_path: Path) -> Path:
    """Scripts for a type checker; the comment makes mypy check them again, whatever its cache holds."""
    reveal = "".join(f"reveal_type(i2am.{name})\n" for name in i2am.__all__)
    scripts = {"reveal": f"import i2am\n{reveal}", "typed": TYPED_SCRIPT, "wrong": WRONG_SCRIPT}
    for name, text in scripts.items():
        (tmp_path / f"{name}.py").write_text(f"{text}# {tmp_path}\n")
    return tmp_path


def check_revealed(revealed: list[str]) -> None:
    """Every public name is revealed as what it is: a class by its name, a function by all its parameters."""
    for name, text in zip(i2am.__all__, revealed, strict=True):
        public = getattr(i2am, name)
        if inspect.isclass(public):
            assert re.search(rf"\b{name}\b", text), text
        else:
            for parameter in inspect.signature(public).parameters:
                assert f"{parameter}: " in text, (name, parameter, text)
            assert not text.endswith("-> Any"), (name, text)


def test_mypy_knows_every_public_name(installed: Installed, typed_folder: Path) -> None:
    cache = ROOT / ".mypy_cache" / "installed"  # torch's and xarray's types are read once
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--cache-dir", cache]
    done = run(*mypy, "--python-executable", installed.python, ".", cwd=typed_folder)
    lines = done.stdout.splitlines()
    check_revealed([line.split('Revealed type is "')[1].rstrip('"') for line in lines if "Revealed" in line])
    errors = [line for line in lines if ": error: " in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert re.search(r'wrong.py:2: error: .* "capture" has incompatible type "int"', errors[0])


def test_pyright_knows_every_public_name(installed: Installed, typed_folder: Path) -> None:
    """By basedpyright, which is pyright with its own node, in pyright's strict mode."""
    pyright = Path(sys.executable).with_name("basedpyright")
    if not pyright.exists():
        pytest.skip("basedpyright is not installed: pip install -e '.[dev]'")
    (typed_folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    done = run(pyright, "--pythonpath", installed.python, "--outputjson", cwd=typed_folder)
    found = json.loads(done.stdout)["generalDiagnostics"]
    revealed = [each["message"] for each in found if each["severity"] == "information"]
    check_revealed([message.split('" is "', 1)[1].rstrip('"') for message in revealed])
    errors = [each for each in found if each["severity"] != "information"]
    assert [(Path(each["file"]).name, each["rule"]) for each in errors] == [
        ("wrong.py", "reportArgumentType")
    ]
