"""SIGKILL of Dask workers and schedulers at random moments of ``i2am analyze`` changes nothing."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from i2am.storage.format.layer_spec import LayerSpec
from tests.analysis.builders import build
from tests.integration.dask_kill_driver import kill_at_random


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen samples of two layers: some seconds of work for two workers."""
    path = tmp_path_factory.mktemp("kills") / "run.zarr"
    layers = [
        LayerSpec("large", 4, 32, (32, 32), (16, 16), ref_prefix=1),
        LayerSpec("small", 2, 16, (8, 8), (8, 8), ref_prefix=1),
    ]
    build(path, layers, steps=6, samples=[f"s{number:02}" for number in range(16)], images=True)
    return path


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(4, marks=pytest.mark.timeout(400)),
        pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_kills_change_nothing(run: Path, tmp_path: Path, kills: int) -> None:
    """Equal marginals, maps and tables; nothing left running or lying about; see the driver for the rest."""
    seed = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    record = kill_at_random(run, tmp_path, kills, seed, ("processes", "foreign"))
    sys.stdout.write(json.dumps(asdict(record), indent=1))
    assert record.wrong == [], seed
    assert len(record.kills) == kills, seed
