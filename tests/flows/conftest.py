"""Small runs and configurations for the tests of the command line."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.writing.create import create_run

ROOT = Path(__file__).parents[2]
LAYERS = ("deep", "fine")
SAMPLES = ("a", "b", "c")


@dataclass
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str

    def refused(self, words: str) -> None:
        """Assert one line on standard error with ``words``, and exit status 2."""
        import re

        assert self.status == 2, (self.status, self.out, self.err)
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("i2am: ")
        assert re.search(words, lines[0]), lines[0]

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def i2am(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process."""
    from i2am.flows.cli import main

    def run(*argv: object) -> Outcome:
        status = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


def spawn(*argv: object, mortal: bool = False, env: dict[str, str] | None = None, **options: Any) -> Outcome:
    """Run a command in a process of its own; ``mortal``: permissions hold for it even if we are root."""
    done = subprocess.run(
        [sys.executable, "-m", "i2am", *map(str, argv)],
        cwd=options.pop("cwd", ROOT),
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stderr=subprocess.PIPE,
        stdout=options.pop("stdout", subprocess.PIPE),
        text=True,
        timeout=240,
        check=False,
        preexec_fn=_drop_override if mortal and os.geteuid() == 0 else None,
        **options,
    )
    return Outcome(done.returncode, done.stdout or "", done.stderr)


def _drop_override() -> None:
    """Give up root's right to ignore permissions: CAP_DAC_OVERRIDE (1) and CAP_DAC_READ_SEARCH (2)."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP


def write_run(path: Path, samples: tuple[str, ...] = SAMPLES, commit: int | None = None) -> Path:
    """Write a small random run with all images; ``commit`` of its samples are committed."""
    rng = np.random.default_rng(7)
    specs = [
        LayerSpec("deep", heads=2, head_dim=4, gen_grid=(4, 4), ref_grid=(3, 3), dtype="float32"),
        LayerSpec("fine", heads=2, head_dim=4, gen_grid=(8, 8), ref_grid=(3, 3), dtype="float32"),
    ]
    shapes = {"source": (16, 16, 3), "mask": (16, 16, 1), "reference": (12, 12, 3), "generated": (16, 16, 3)}
    with create_run(path, specs, [30, 20, 10], samples, image_shapes=shapes) as run:
        for sample in samples[:commit]:
            with run.sample(sample) as sink:
                for spec in specs:
                    key = rng.normal(size=(2, spec.ref, 4)).astype(np.float32)
                    for step in range(3):
                        query = rng.normal(size=(2, spec.gen, 4)).astype(np.float32)
                        sink.put(spec.name, step, query=query, key=key)
                for name, shape in shapes.items():
                    image = rng.integers(0, 255, shape, dtype=np.uint8)
                    if name == "mask":
                        image[:] = 0
                        image[4:12, 4:12] = 255
                    sink.put_image(name, image)
    return path


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run.zarr")


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    """A run of three samples, to be damaged at will."""
    return Path(shutil.copytree(pristine, tmp_path / "run.zarr"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a Prefect server that all tests of the session share: it takes long to start."""
    from i2am.flows.prefect.server import temporary_server

    with temporary_server(tmp_path_factory.mktemp("prefect")) as env:
        yield env


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Write the configuration of a tiny capture; keyword arguments replace keys, None removes them."""

    def write(**changes: Any) -> Path:
        settings: dict[str, Any] = {
            "out": "tiny.zarr",
            "pipeline": {"kind": "factory", "function": "tests.flows.tiny:build"},
            "samples": {"scenes": {"count": 2}},
            "call": {"num_inference_steps": 2},
        }
        settings = {key: value for key, value in (settings | changes).items() if value is not None}
        file = tmp_path / "capture.yaml"
        file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
        return file

    return write
