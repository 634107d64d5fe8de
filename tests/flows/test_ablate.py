"""``i2am ablate``: a planted token that alone is causal, resumption, other families, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from i2am.flows.capture.job import run_capture
from i2am.flows.config.load_yaml import load_capture
from i2am.flows.experiments.ablate import ablate_run
from i2am.flows.experiments.removals import Generator
from tests.flows.conftest import Outcome
from tests.flows.tiny_systems import PLANTED

I2am = Callable[..., Outcome]
SYSTEMS = "tests.flows.tiny_systems"
QUICK = ("--rank", "g2r,random,lowest", "--fractions", "0.1", "--draws", "1", "--blocks", "2", "--quiet")


def factory(name: str) -> dict[str, str]:
    return {"kind": "factory", "function": f"{SYSTEMS}:{name}"}


@pytest.fixture
def planted(config: Callable[..., Path]) -> Path:
    """The configuration of a captured run of two scenes, one token of whose references is causal."""
    file = config(pipeline=factory("planted"), batch_size=8)
    run_capture(load_capture(file))
    return file


def test_a_planted_token_is_found_and_is_all_that_counts(planted: Path, i2am: I2am, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["ablate", planted, "--run", tmp_path / "tiny.zarr", "--out", out, "--fractions", "0.004,0.9"]
    words += ["--draws", "1", "--blocks", "2"]
    outcome = i2am(*words, "--json")
    assert outcome.status == 0, outcome.err
    samples = pl.read_parquet(out / "tables" / "faithfulness_samples.parquet")
    assert samples["outside"].abs().max() == 0  # the painter keeps the scene
    for scene in samples["sample"].unique():
        own = samples.filter(sample=scene)
        whole = own.filter(kind="deletion", fraction=1)["inside"].to_list()
        assert len(set(whole)) == 1
        assert whole[0] > 1
        for rank in ("g2r", "g2r-painted", "daam"):
            curve = own.filter(rank=rank, kind="deletion").sort("fraction")["inside"].to_list()
            assert curve == [0, *[whole[0]] * 3]  # one of 256 tokens, and everything is gone
            left = own.filter(rank=rank, kind="insertion").sort("fraction")["inside"].to_list()
            assert left == [whole[0], 0, 0, 0]
        lowest = own.filter(rank="lowest", kind="deletion").sort("fraction")["inside"].to_list()
        assert lowest == [0, 0, 0, whole[0]]
        assert set(own["inside"].to_list()) == {0.0, whole[0]}
    patches = pl.read_parquet(out / "tables" / "faithfulness_patches.parquet")
    block = (PLANTED[0] // 8, PLANTED[1] // 8)
    for row in patches.iter_rows(named=True):
        causal = (row["row"], row["column"]) == block
        assert (row["change"] > 0) == causal
        assert causal or row["correlation"] is None
    for name in ("faithfulness", "faithfulness-layers"):
        assert (out / "pictures" / f"{name}.png").is_file()
    assert i2am("verify", out).status == 0
    summary = pl.DataFrame(outcome.json["summary"], infer_schema_length=None)
    area = summary.filter(measure="area", region="inside", kind="deletion")
    assert area.filter(rank="g2r")["value"].item() > 1.5 * area.filter(rank="random")["value"].item()
    again = i2am(*words, "--json").json
    assert again["generated"] == 0
    assert again["summary"] == outcome.json["summary"]


def test_an_interrupted_experiment_goes_on(
    planted: Path, i2am: I2am, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["ablate", planted, "--run", tmp_path / "tiny.zarr", "--json", *QUICK]
    whole = i2am(*words, "--out", tmp_path / "whole").json
    generate = Generator._generate
    calls: list[int] = []

    def interrupted(self: Generator, sample: str, removed: list[np.ndarray]) -> list[np.ndarray]:
        calls.append(len(removed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(self, sample, removed)

    monkeypatch.setattr(Generator, "_generate", interrupted)
    assert i2am(*words, "--out", tmp_path / "out").status == 130
    assert not (tmp_path / "out" / "tables").exists()
    monkeypatch.undo()
    rest = i2am(*words, "--out", tmp_path / "out").json
    assert rest["generated"] == whole["generated"] // 2 - 8  # one scene was whole, and a batch of the other
    assert rest["summary"] == whole["summary"]
    more = i2am(*words, "--out", tmp_path / "out", "--fractions", "0.1,0.3", "--limit", "1").json
    assert 0 < more["generated"] <= 6


SCENE = {"image": "source", "mask_image": "mask", "reference_image": "reference"}


@pytest.mark.parametrize(
    ("system", "inputs", "mode"),
    [
        ("flux_kontext", {"image": "source"}, None),
        ("ip_adapter", {}, None),
        ("pasd", {"image": "source"}, "mask"),
        ("seesr", {"image": "source"}, "mean"),
        ("stableviton", SCENE, "mean"),
    ],
)
def test_other_families(
    config: Callable[..., Path], tmp_path: Path, system: str, inputs: dict[str, str], mode: Any
) -> None:
    scene = {"scenes": {"count": 1}}
    file = config(pipeline=factory(system), inputs=inputs, call={"num_inference_steps": 2}, samples=scene)
    settings = load_capture(file)
    run_capture(settings)
    asked: dict[str, Any] = {"ranks": ["g2r", "lowest"], "fractions": [0.5], "blocks": 0}
    found = ablate_run(settings, settings.out, tmp_path / "out", mode=mode, **asked)
    changes = found.samples.filter(fraction=1, kind="deletion")["inside"]
    assert changes.n_unique() == 1
    assert changes[0] > 0
    assert found.samples.filter(fraction=0, kind="deletion")["inside"].to_list() == [0, 0]


def test_refusals(planted: Path, config: Callable[..., Path], i2am: I2am, tmp_path: Path) -> None:
    run, out = tmp_path / "tiny.zarr", tmp_path / "out"

    def ablate(file: Path, *more: object) -> Outcome:
        return i2am("ablate", file, "--run", run, "--out", out, *QUICK, *more)

    ablate(planted, "--rank", "g2s").refused("unknown rank 'g2s'")
    ablate(planted, "--fractions", "0.1,x").refused(
        "--fractions; expected numbers such as 0.05,0.1; got '0.1,x'"
    )
    ablate(planted, "--fractions", "0.1,1.5").refused("fractions; expected numbers above 0, at most 1")
    ablate(planted, "--mode", "latent").refused("mode of adapter .*expected empty, mean or mask; got latent")
    ablate(planted, "--mode", "zero").refused("mode; expected empty or mean or latent or mask; got 'zero'")
    ablate(planted, "--blocks", "17").refused("blocks; expected 1 to 16")
    ablate(planted, "--confidence", "2").refused("confidence")
    assert not (out / "tables").exists()
    changed = config(pipeline=factory("planted"), call={"num_inference_steps": 3})
    ablate(changed).refused(
        "generated again without ablation; expected the image in the run; got one that dif"
    )
    fewer = config(pipeline=factory("planted"), samples={"scenes": {"count": 1}})
    ablate(fewer).refused("unknown sample of the configuration 'scene-0000001'")
