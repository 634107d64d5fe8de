"""Any value in any field of a configuration: done, or one line and exit status 2; never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.flows.conftest import Outcome

I2am = Callable[..., Outcome]


class Raw(str):
    """A number that YAML can write and JSON cannot."""


FIELDS = [
    *("out", "pipeline", "pipeline.kind", "pipeline.function", "pipeline.arguments", "pipeline.folder"),
    *("pipeline.arguments.delay", "pipeline.arguments.other", "samples", "samples.scenes", "samples.limit"),
    *(
        "samples.scenes.count",
        "samples.scenes.first_seed",
        "samples.manifest",
        "samples.size",
        "samples.coco",
    ),
    *("samples.viton_hd", "samples.low_resolution", "call", "call.num_inference_steps", "call.height"),
    *("call.guidance_scale", "call.output_type", "call.callback_on_step_end", "call.generator", "call.zzz"),
    *("inputs", "inputs.image", "seed", "batch_size", "adapter", "roles", "guidance", "timesteps", "layers"),
    *("steps", "heads", "representation", "device", "dtype", "storage_options", "storage_options.region"),
    *("storage_options.client_options", "sweep", "sweep.gpus", "sweep.workers", "sweep.shard"),
    *("sweep.retries", "sweep.backoff", "sweep.patience", "sweep.deadline"),
]
VALUES: list[Any] = [
    *(0, 1, -1, 100_000_000, 10**30, 1.5, 1e308, Raw(".nan"), Raw("-.inf"), True, None, "", "x", "../x"),
    *("é\u202e", "cpu", "latent", "meta", "mps", "xpu:3", "cuda", "::0", "0:10", "/dev/null/x", "/proc/x"),
    *("memory://x", "embedded", "odd.csv", "2020-01-01", [], [0], ["a"], [["cond"]], [[]], [Raw(".nan")]),
    *({}, {"a": 1}, {"kind": "embedded"}, {"manifest": "odd.csv"}, {"0": {"1": [None]}}),
]
OTHERS = ("limit", "size", "manifest", "coco", "viton_hd", "low_resolution")


def yaml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(yaml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {yaml(item)}" for key, item in value.items()) + "}"
    return str(value) if isinstance(value, Raw) else json.dumps(value)


def write(folder: Path, changes: dict[str, Any]) -> Path:
    """The tiny capture of one scene with fields replaced."""
    data: dict[str, Any] = {
        "out": "tiny.zarr",
        "pipeline": {"kind": "factory", "function": "tests.flows.tiny:build"},
        "samples": {"scenes": {"count": 1}},
        "call": {"num_inference_steps": 2},
    }
    for field, value in changes.items():
        *above, last = field.split(".")
        place = data
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value
        if above == ["samples"] and last in OTHERS:
            place.pop("scenes", None)
            place.setdefault("manifest", "odd.csv")
    file = folder / "capture.yaml"
    file.write_text("".join(f"{key}: {yaml(value)}\n" for key, value in data.items()))
    return file


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with a manifest of images whose sizes no model takes."""
    pixels = np.random.default_rng(0).integers(0, 255, (50, 37, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "o.png")
    Image.fromarray(np.where(pixels[..., 0] > 99, 255, 0).astype(np.uint8)).save(tmp_path / "m.png")
    (tmp_path / "odd.csv").write_text("id,reference,source,mask\nx,o.png,o.png,m.png\n")
    return tmp_path


@settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
@given(field=st.sampled_from(FIELDS), value=st.sampled_from(VALUES))
def test_any_value_in_any_field(i2am: I2am, odd: Path, field: str, value: Any) -> None:
    shutil.rmtree(odd / "tiny.zarr", ignore_errors=True)
    outcome = i2am("capture", write(odd, {field: value}), "--direct", "--quiet")
    if outcome.status:
        outcome.refused("i2am: ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"out": "s3://bucket/x", "storage_options.region": 5}, "store s3://bucket; .*region: .*need quotes"),
        (
            {"out": "s3://bucket/x", "storage_options.client_options": [1]},
            "client_options; .*mapping; got list",
        ),
        ({"out": "github://x", "storage_options.nonsense": True}, "nonsense: .*correct storage_options"),
        ({"call.num_inference_steps": 0}, "num_inference_steps from 1 to 10000"),
        ({"call.num_inference_steps": 100_000_000}, "num_inference_steps from 1 to 10000"),
        ({"call.guidance_scale": Raw(".nan")}, "without infinity and NaN"),
        ({"call.extra": {"deep": [Raw(".inf")]}}, "without infinity and NaN"),
        ({"call.guidance_scale": "high"}, "guidance_scale that is a number"),
        (
            {"call.num_inference_steps": 1001},
            "the pipeline failed with sample 'scene-0000000'; got ValueError",
        ),
        ({"pipeline": "embedded", "samples.manifest": "odd.csv"}, "pipeline failed .*samples: a size:"),
        ({"pipeline.arguments.other": 1}, "tests.flows.tiny:build' failed; got TypeError: .*'other'"),
        ({"pipeline.function": "broken_module:build"}, "failed; got SyntaxError.*correct the function"),
        ({"device": "meta"}, "i2am: "),
        ({"device": "mps"}, "device; expected one that this machine has; got mps"),
        ({"sweep.gpus": [0, 1]}, "device: cuda where sweep.gpus names GPUs"),
        ({"out": "/proc/x/tiny.zarr"}, "cannot be made; expected a folder of a disk at /proc"),
        ({"out": "/dev/null/tiny.zarr"}, "cannot be made; expected a folder at /dev/null"),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else "",
)
def test_what_was_a_traceback(i2am: I2am, odd: Path, changes: dict[str, Any], words: str) -> None:
    (odd / "broken_module.py").write_text("def build(:\n")
    i2am("capture", write(odd, changes), "--direct", "--quiet").refused(words)


@pytest.mark.parametrize("where", ["file", "option"])
def test_gpus_that_are_not_there(i2am: I2am, odd: Path, where: str) -> None:
    """Neither on the CPU without a word, nor on GPUs that this machine lacks."""
    named = {"sweep.gpus": ["test-none", "test-nil"]} if where == "file" else {}
    option = () if where == "file" else ("--gpus", "test-none,test-nil")
    i2am("sweep", write(odd, named), *option, "--direct").refused("device: cuda where sweep.gpus names GPUs")
    file = write(odd, {"device": "cuda", **named})
    i2am("sweep", file, *option, "--direct", "--quiet").refused(
        "expected one of 0 CUDA devices; got cuda with CUDA_VISIBLE_DEVICES=test-n"
    )
    assert not (odd / "tiny.zarr").exists()


def test_a_base_installation_names_the_extra(i2am: I2am, odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "obstore" else real(name, *rest)
    )
    for package in ("obstore.fsspec", "s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    for url in ("s3://bucket/run.zarr", "gs://bucket/run.zarr"):
        i2am("inspect", url).refused(r"no package for the protocol .*pip install 'i2am\[s3\]'")


def test_short_help(i2am: I2am) -> None:
    for words in (("-h",), ("sweep", "-h")):
        outcome = i2am(*words)
        assert (outcome.status, "Usage" in outcome.out) == (0, True)


def test_every_remedy_exists_in_an_installation(i2am: I2am, odd: Path) -> None:
    """The folder examples/ is no part of a wheel; the demo's configuration is."""
    (odd / "empty.yaml").write_text("out: x.zarr\n")
    for file in ("nothing.yaml", "empty.yaml"):
        i2am("capture", odd / file).refused("i2am demo --out DIR writes an example, DIR/capture.yaml")
    for package in ("flows", "pipeline", "analysis", "storage"):
        for module in Path(__file__).parents[2].joinpath(package).rglob("*.py"):
            assert "see examples/" not in module.read_text(encoding="utf-8"), module
