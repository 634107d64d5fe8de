"""What a crash or damage may do to a run, and what it may not."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.flows.conftest import ROOT, Outcome, i2am, write_run  # noqa: F401 - i2am is a fixture

KILLS = 6
READ = {("query", "flip"), ("key", "delete"), ("images", "truncate"), ("commit", "flip")}
"""Damage that every reading command is asked about."""


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of a run as plain zarr reads it."""
    found = {}
    for part in ("attention", "images"):
        for name, item in zarr.open_group(path / part, mode="r").members(max_depth=None):
            if isinstance(item, zarr.Array):
                found[f"{part}/{name}"] = item[...]
    return found


@pytest.mark.timeout(400)
def test_kills_change_nothing(tmp_path: Path) -> None:
    """SIGKILL at six random moments, then resume: equal to an undisturbed run, and nothing is done twice."""
    settings = {
        "out": "killed.zarr",
        "pipeline": {"kind": "factory", "function": "tests.flows.tiny:build", "arguments": {"delay": 0.05}},
        "samples": {"scenes": {"count": 16}},
        "call": {"num_inference_steps": 3},
    }
    config = tmp_path / "capture.yaml"
    config.write_text(json.dumps(settings))
    seed = random.SystemRandom().randrange(2**32)
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.capture_driver", str(config), str(KILLS), str(seed)],
        cwd=ROOT, capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (seed, done.stderr)
    told = json.loads(done.stdout)
    assert told["finished"], seed
    assert sum(entry["killed"] for entry in told["history"]) == KILLS, seed
    assert len(told["history"][-1]["committed"]) > 0, f"no kill came after a commit; seed {seed}"
    for entry in told["history"]:
        for record, files in entry["committed"].items():
            assert told["final"][record] == files, (seed, record)
    run = open_run(tmp_path / "killed.zarr")
    assert run.samples == run.declared
    report = verify(tmp_path / "killed.zarr")
    assert report.ok, (seed, report.problems)
    assert not report.notes, (seed, report.notes)
    whole, killed = arrays(tmp_path / "whole.zarr"), arrays(tmp_path / "killed.zarr")
    assert whole.keys() == killed.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(values, killed[name], err_msg=f"{name}, seed {seed}")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("sound") / "run.zarr")


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("what", ["query", "key", "images", "commit"])
def test_damage_is_named_and_contained(
    sound: Path,
    tmp_path: Path,
    i2am: Callable[..., Outcome],  # noqa: F811
    harm: str,
    what: str,
) -> None:
    path = Path(shutil.copytree(sound, tmp_path / "run.zarr"))
    victim, layer = {
        "query": (path / "attention/fine/query/c.1.0.0.0.0", "fine"),
        "key": (path / "attention/deep/key/c.1.0.0.0.0", "deep"),
        "images": (path / "images/mask/c.1.0.0.0", "images/mask"),
        "commit": (path / "commits/b.json", None),
    }[what]
    content = victim.read_bytes()
    if harm == "flip":
        at = random.Random(what).randrange(len(content))
        victim.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    elif harm == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    else:
        victim.unlink()

    found = i2am("verify", path, "--json", "--quiet")
    assert found.status == 1
    problems = found.json["problems"]
    assert {problem["sample"] for problem in problems} == {"b"}
    assert what == "commit" or {problem["layer"] for problem in problems} == {layer}

    if (what, harm) not in READ:
        return
    analysed = i2am("analyze", path, "--out", tmp_path / "out", "--direct", "--json")
    assert analysed.status == 1
    assert analysed.json["samples"] == ["a", "c"]
    (refusal,) = analysed.json["refusals"]
    assert refusal["sample"] == "b"
    assert "i2am: refused: sample 'b'" in analysed.err
    scored = i2am("imacs", path, "--direction", "r2g", "--json")
    assert scored.status == 1
    assert {row["sample"] for row in scored.json["scores"]} == {"a", "c"}
    assert "b" in i2am("maps", path, "--sample", "b", "--out", tmp_path / "F.npz").err
    assert i2am("maps", path, "--sample", "a", "--out", tmp_path / "F.npz").status == 0


def test_a_damaged_root_is_one_line_and_status_1(
    sound: Path,
    tmp_path: Path,
    i2am: Callable[..., Outcome],  # noqa: F811
) -> None:
    path = Path(shutil.copytree(sound, tmp_path / "run.zarr"))
    root = path / "zarr.json"
    content = bytearray(root.read_bytes())
    for at in random.Random(0).sample(range(len(content)), 12):
        root.write_bytes(content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :])
        outcome = i2am("inspect", path)
        assert outcome.status == 1, (at, outcome)
        assert len(outcome.err.splitlines()) == 1
        assert i2am("verify", path, "--quiet").status == 1
