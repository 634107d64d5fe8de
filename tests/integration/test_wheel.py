"""The wheel in an environment of its own: what it adds, what runs from it, what type checkers see."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import i2am

ROOT = Path(__file__).parents[2]
PACKAGES = ("storage", "pipeline", "analysis", "flows")

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


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=280, check=False
    )


def run_well(*command: object, cwd: Path) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel, and the dependencies of the environment that runs the tests."""

    bin: Path
    added: set[str]
    added_scripts: set[str]

    @property
    def python(self) -> Path:
        return self.bin / "python"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is built from."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("i2am", *PACKAGES):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    return tree / run_well(sys.executable, "-c", build, cwd=tree).split()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("fresh")
    run_well(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (site,) = (folder / "lib").glob("python*/site-packages")
    files, scripts = set(site.iterdir()), set((folder / "bin").iterdir())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin" / "python"]
    run_well(*pip, "install", "--no-deps", "--no-index", "--no-compile", wheel, cwd=folder)
    added = {path.name for path in set(site.iterdir()) - files}
    added_scripts = {path.name for path in set((folder / "bin").iterdir()) - scripts}
    # A path file names folders of modules, but does not run their own path files: the editable install that
    # the tests run from stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(folder / "bin", added, added_scripts)


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """A folder as in many research repositories, with modules that are called like the project's folders."""
    (tmp_path / "storage").mkdir()
    for name in ("pipeline.py", "analysis.py", "flows.py", "storage/__init__.py"):
        (tmp_path / name).write_text("raise RuntimeError('the user’s own module was imported')\n")
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


def test_the_demo_runs_from_an_installation(installed: Installed, user_folder: Path) -> None:
    command = ["demo", "--out", "D", "--samples", 1, "--steps", 2, "--direct"]
    out = run_well(installed.bin / "i2am", *command, cwd=user_folder)
    assert out.splitlines()[-1] == "report: D/report/index.html"
    assert (user_folder / "D" / "report" / "index.html").exists()


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
