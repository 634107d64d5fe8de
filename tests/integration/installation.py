"""Build the wheel, install it into an environment of its own, and run commands from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("storage", "pipeline", "analysis", "flows")


def run(*command: object, cwd: Path, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Run a command that does not see the checkout."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    argv = [str(word) for word in command]
    return subprocess.run(
        argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False
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


def build_wheel(tree: Path) -> Path:
    """The wheel of a copy, at ``tree``, of what it is built from."""
    for name in ("i2am", *PACKAGES):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    return tree / run_well(sys.executable, "-c", build, cwd=tree).split()[-1]


def install(wheel: Path, folder: Path) -> Installed:
    """Install ``wheel`` alone into a new environment at ``folder``."""
    run_well(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (site,) = (folder / "lib").glob("python*/site-packages")
    files, scripts = set(site.iterdir()), set((folder / "bin").iterdir())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin" / "python"]
    run_well(*pip, "install", "--no-deps", "--no-index", "--no-compile", wheel, cwd=folder)
    added = {path.name for path in set(site.iterdir()) - files}
    added_scripts = {path.name for path in set((folder / "bin").iterdir()) - scripts}
    # A path file names folders of modules, but does not run the path files in them: the editable install that
    # the tests run from stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(folder / "bin", added, added_scripts)


def write_user_modules(folder: Path) -> None:
    """Modules that are called like the project's folders, as in many research repositories."""
    (folder / "storage").mkdir()
    for name in ("pipeline.py", "analysis.py", "flows.py", "storage/__init__.py"):
        (folder / name).write_text("raise RuntimeError('the user's own module was imported')\n")
