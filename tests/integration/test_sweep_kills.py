"""Sweeps, capture processes and the server are killed at random moments: runs end complete and equal."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from i2am.flows.capture.job import run_capture
from i2am.flows.config.load_yaml import load_capture
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.flows.conftest import ROOT
from tests.integration.test_durability import arrays


def survive(folder: Path, kills: int, samples: int) -> None:
    """Run a sweep through ``kills`` kills, and compare with an undisturbed capture."""
    settings = {
        "out": "swept.zarr",
        "pipeline": {"kind": "factory", "function": "tests.flows.tiny:build", "arguments": {"delay": 0.1}},
        "samples": {"scenes": {"count": samples}},
        "call": {"num_inference_steps": 3},
        "sweep": {"workers": 2, "shard": 4, "retries": 100, "backoff": 0.1, "patience": 5},
    }
    config = folder / "capture.yaml"
    config.write_text(json.dumps(settings))
    scratch = folder / "tmp"
    scratch.mkdir()
    seed = random.SystemRandom().randrange(2**32)
    marked = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.sweep_driver", str(config), str(kills), str(seed)],
        cwd=ROOT, env=marked, capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    log = (folder / "sweep.log").read_text()
    assert done.returncode == 0, (seed, done.stderr, log)
    result = json.loads(done.stdout)
    sys.stdout.write(f"seed {seed}: {result['killed']}, statuses {result['statuses']}\n{log}\n")
    assert sum(result["killed"].values()) == kills, (seed, result)
    assert "Traceback" not in log, (seed, log)
    assert result["changed"] == [], (seed, "a committed sample was written again")
    whole = load_capture(config, str(folder / "whole.zarr"))
    run_capture(whole)
    alone = arrays(folder / "whole.zarr")
    for place in map(Path, result["runs"]):
        run = open_run(place)
        assert run.samples == run.declared, seed
        assert len(run.samples) == samples
        report = verify(place)
        assert report.ok, (seed, report.problems)
        assert report.notes == (), (seed, report.notes)
        swept = arrays(place)
        assert alone.keys() == swept.keys()
        for name, values in alone.items():
            # Another process may have another number of threads, and round otherwise.
            np.testing.assert_allclose(
                values, swept[name], rtol=1e-3, atol=1e-5, err_msg=f"{name}, seed {seed}"
            )
    left = [path for path in scratch.iterdir() if not path.name.startswith("torchinductor_")]  # torch's own
    assert not left, (seed, "temporary files remain")
    assert not alive(str(folder)), (seed, "processes remain")


def alive(words: str) -> list[str]:
    """Command lines of the processes that have some words in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if words.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.timeout(900)
def test_a_sweep_survives_two_kills(tmp_path: Path) -> None:
    survive(tmp_path, 2, 16)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_sweep_survives_fifty_kills(tmp_path: Path) -> None:
    survive(tmp_path, 50, 30)
