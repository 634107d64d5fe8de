"""The commands that read a run: what they say to people and to programs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import xarray as xr
from PIL import Image

from i2am.analysis.scores.imacs import imacs
from i2am.flows.console.output import human_bytes, print_json
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.open import open_run
from i2am.storage.writing.create import create_run
from tests.analysis import builders
from tests.flows.conftest import LAYERS, SAMPLES, Outcome, spawn, write_run

I2am = Callable[..., Outcome]


def test_inspect_as_json_is_complete(i2am: I2am, run: Path) -> None:
    outcome = i2am("inspect", run, "--json")
    assert outcome.status == 0
    facts = outcome.json
    assert facts["samples"] == {"declared": 3, "committed": 3, "missing": []}
    assert [layer["name"] for layer in facts["layers"]] == list(LAYERS)
    assert facts["timesteps"] == [30, 20, 10]
    stored = [
        path for folder in ("attention", "images") for path in (run / folder).rglob("c.*") if path.is_file()
    ]
    assert facts["files"] == len(stored)
    assert facts["bytes"] == sum(path.stat().st_size for path in stored)


def test_inspect_lists_missing_samples(i2am: I2am, tmp_path: Path) -> None:
    outcome = i2am("inspect", write_run(tmp_path / "part.zarr", commit=1))
    assert outcome.status == 0
    assert "1 of 3 samples committed" in outcome.out
    assert "missing: b, c" in outcome.out
    for layer in LAYERS:
        assert layer in outcome.out


def test_names_from_a_store_cannot_steer_the_terminal(i2am: I2am, tmp_path: Path) -> None:
    path = write_run(tmp_path / "odd.zarr", samples=("[bold]x[/bold]", "a/../b", "<script>"))
    outcome = i2am("imacs", path)
    assert outcome.status == 0
    for name in ("[bold]x[/bold]", "a/../b", "<script>"):
        assert name in outcome.out


def test_verify_of_an_undamaged_run(i2am: I2am, run: Path) -> None:
    outcome = i2am("verify", run, "--quiet")
    assert (outcome.status, outcome.err) == (0, "")
    assert "ok; 3 samples" in outcome.out
    report = i2am("verify", run, "--json", "--quiet").json
    assert (report["ok"], report["samples"], report["problems"]) == (True, 3, [])
    assert report["bytes"] == sum(path.stat().st_size for path in run.rglob("*") if path.is_file())


@pytest.mark.parametrize("level", ["unified", "time", "head", "layer"])
@pytest.mark.parametrize("direction", ["r2g", "g2r"])
def test_maps_as_arrays(i2am: I2am, run: Path, tmp_path: Path, direction: str, level: str) -> None:
    out = tmp_path / "F.npz"
    words = ["--direction", direction, "--level", level, "--time-groups", 3, "--out", out]
    assert i2am("maps", run, *words).status == 0
    with np.load(out) as file:
        maps = file["maps"]
    axis = {"unified": (), "time": (3,), "head": (2,), "layer": (2,)}[level]
    grid = (8, 8) if direction == "r2g" else (3, 3)
    assert maps.shape == (3, *axis, *grid)
    uniform = maps.mean(axis=(-2, -1))  # a density averages to 1 over its own grid
    if direction == "g2r" or level == "layer":
        np.testing.assert_allclose(uniform, 1, atol=0.05 if direction == "r2g" else 1e-5)


def test_maps_as_zarr_and_as_a_picture(i2am: I2am, run: Path, tmp_path: Path) -> None:
    assert i2am("maps", run, "--out", tmp_path / "F.zarr", "--sample", "b", "--steps", "1:").status == 0
    opened = xr.open_zarr(tmp_path / "F.zarr", consolidated=False)
    (name,) = opened.data_vars
    assert opened[name].dims == ("sample", "y", "x")
    assert list(opened["sample"].values) == ["b"]
    assert i2am("maps", run, "--out", tmp_path / "F.png", "--level", "head").status == 0
    with Image.open(tmp_path / "F.png") as image:
        assert image.format == "PNG"
    assert i2am("maps", run, "--out", tmp_path / "F.png", "--overwrite").status == 0


def test_imacs_equals_the_formula(i2am: I2am, run: Path, tmp_path: Path) -> None:
    i2am("maps", run, "--size", "16", "--out", tmp_path / "F.npz")
    with np.load(tmp_path / "F.npz") as file:
        maps = file["maps"].astype(float)
    rows = {row["sample"]: row for row in i2am("imacs", run, "--direction", "r2g", "--json").json["scores"]}
    assert sorted(rows) == sorted(SAMPLES)
    opened = open_run(run)
    for sample, values in zip(SAMPLES, maps, strict=True):
        mask = opened.image("mask", sample)[..., 0] > 127
        scaled = (values - values.min()) / (values.max() - values.min())
        score = (scaled * mask).sum() / mask.sum() - 3 * (scaled * ~mask).sum() / (~mask).sum()
        # The command brings the layers' mean at 8×8 to the mask; the file's maps went there layer by layer.
        assert rows[sample]["imacs"] == pytest.approx(score, abs=0.25)


def test_the_official_protocol(i2am: I2am, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "F.npz"
    outcome = i2am("maps", run, "--protocol", "official", "--out", out)
    assert (outcome.status, outcome.err) == (0, "")
    assert "softmax probability, summed over steps" in outcome.out
    with np.load(out) as file:
        maps = file["maps"]
        assert json.loads(str(file["attrs"]))["protocol"] == "official"
    assert maps.shape == (3, 64, 64)
    assert 0 <= maps.min() < maps.max() < 3  # steps
    assert i2am("maps", run, "--protocol", "official", "--out", tmp_path / "F.png").status == 0
    mask = np.zeros((16, 16), bool)
    mask[4:12, 4:12] = True
    scores = i2am("imacs", run, "--direction", "r2g", "--protocol", "official", "--json").json
    assert scores["protocol"] == "official"
    for row, values in zip(scores["scores"], maps, strict=True):
        assert row["imacs"] == pytest.approx(imacs(values, mask, "r2g", protocol="official"), abs=1e-9)
    assert "× uniform" not in i2am("imacs", run, "--protocol", "official").out
    i2am("imacs", run, "--protocol", "offical").refused("unknown protocol 'offical'.*did you mean 'official'")


def test_imacs_for_people(i2am: I2am, run: Path) -> None:
    outcome = i2am("imacs", run)
    assert outcome.status == 0
    assert outcome.out.count("r2g") == 3 + 1  # the samples, and their mean
    assert "no image 'reference_mask'" in outcome.out


def test_analyze_by_configuration(i2am: I2am, run: Path, tmp_path: Path) -> None:
    config = tmp_path / "analysis.yaml"
    config.write_text("samples: [a, c]\nsteps: 0:2\ntime_groups: 2\nfigures: 0\nworkers: 1\n")
    out = tmp_path / "out"
    outcome = i2am("analyze", run, "--out", out, "--config", config, "--direct", "--json")
    assert outcome.status == 0, outcome.err
    assert outcome.json["samples"] == ["a", "c"]
    assert {row["sample"] for row in outcome.json["scores"]} == {"a", "c"}
    assert Path(outcome.json["report"]) == out / "report" / "index.html"
    assert (out / "report" / "index.html").is_file()
    assert list((out / "tables").glob("*.parquet"))
    assert re.search(r"marginals (\d+)/\1\b", outcome.err)
    assert (
        i2am("analyze", run, "--out", out, "--direct", "--quiet").status == 0
    )  # its own results are replaced


def test_json_is_alone_on_standard_output(run: Path, tmp_path: Path) -> None:
    """A program reads standard output; progress and library noise go elsewhere."""
    for words in (("inspect",), ("verify",), ("imacs",), ("analyze", "--out", tmp_path / "out", "--direct")):
        outcome = spawn(words[0], run, *words[1:], "--json")
        assert outcome.status == 0, outcome.err
        assert isinstance(outcome.json, dict)


def test_analysis_without_torch(run: Path, tmp_path: Path) -> None:
    """The analysis runs where torch, diffusers and prefect cannot be imported."""
    import subprocess
    import sys

    code = (
        "import sys\n"
        "for name in ('torch', 'diffusers', 'transformers', 'prefect'): sys.modules[name] = None\n"
        "from i2am.flows.cli import main\n"
        f"sys.exit(main(['analyze', {str(run)!r}, '--out', {str(tmp_path / 'out')!r}, '--quiet']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report" / "index.html").is_file()


def test_bytes_for_people() -> None:
    expected = {
        0: "0 B",
        999: "999 B",
        1000: "1 kB",
        1536: "1.54 kB",
        999_999: "1 MB",
        24e9: "24 GB",
        1.3e12: "1.3 TB",
    }
    assert {count: human_bytes(count) for count in expected} == expected


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(
        {"a": float("nan"), "b": np.float32(0.5), "c": (1, Path("x")), "d": float("inf"), "e": np.arange(2)}
    )
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": 0.5, "c": [1, "x"], "d": None, "e": [0, 1]}


def test_imacs_of_a_level_with_intervals(i2am: I2am, run: Path) -> None:
    outcome = i2am("imacs", run, "--level", "head", "--direction", "r2g", "--confidence", "0.8", "--json")
    found = outcome.json
    heads = {row["label"] for row in found["scores"]}
    assert len(found["scores"]) == len(SAMPLES) * len(heads)
    for row in found["summary"]:
        own = [score["imacs"] for score in found["scores"] if score["label"] == row["label"]]
        assert row["imacs_mean"] == pytest.approx(np.mean(own))
        assert row["imacs_mean_low"] <= row["imacs_mean"] <= row["imacs_mean_high"]
        assert row["confidence"] == 0.8
    shown = i2am("imacs", run, "--level", "layer", "--at", "")
    assert shown.status == 2
    people = i2am("imacs", run, "--level", "time", "--time-groups", "3")
    assert "bootstrap interval" in people.out


def test_layers_by_pattern(i2am: I2am, run: Path, tmp_path: Path) -> None:
    name = LAYERS[0]
    assert i2am("maps", run, "--layer", f"*{name[1:]}", "--out", tmp_path / "some.npz").status == 0
    kept = json.loads(str(np.load(tmp_path / "some.npz")["attrs"]))["layers"]
    assert kept == [name]
    i2am("maps", run, "--layer", "*nothing*", "--out", tmp_path / "none.npz").refused("nothing")


def test_maps_of_the_baseline(i2am: I2am, run: Path, tmp_path: Path) -> None:
    assert i2am("maps", run, "--method", "daam", "--out", tmp_path / "daam.npz").status == 0
    assert (np.load(tmp_path / "daam.npz")["maps"] == 1).all()
    i2am("maps", run, "--method", "joint", "--out", tmp_path / "joint.npz").refused("lse")


def test_maps_of_norms(i2am: I2am, run: Path, tmp_path: Path) -> None:
    normed = tmp_path / "normed.zarr"
    builders.build(normed, [builders.layer(value_norm=True, contribution=True)], images=True)
    for direction in ("r2g", "g2r"):
        out = tmp_path / f"{direction}.npz"
        asked = i2am("maps", normed, "--method", "norm", "--direction", direction, "--out", out)
        assert "norm of the value" in asked.out
    assert i2am("maps", normed, "--method", "contribution", "--out", tmp_path / "added.png").status == 0
    assert "value, contribution" in i2am("inspect", normed).out
    for method in ("norm", "contribution"):
        i2am("maps", run, "--method", method, "--out", tmp_path / "none.npz").refused("value_norms=True")


AGGREGATION = """
from i2am import Aggregation

highest = Aggregation("highest", lambda attention: attention.scores.max((2, 3)), units="logit")
"""


def test_an_aggregation_of_ones_own(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(AGGREGATION)
    told = ("--direct", "--quiet")
    done = spawn("analyze", run, "--out", "D", "--aggregation", "mine:highest", *told, cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    table = pl.read_parquet(tmp_path / "D" / "tables" / "aggregation-highest.parquet")
    opened = open_run(run)
    name = LAYERS[0]
    exact = opened.scores(name).max(axis=(3, 4)).compute()
    rows = table.filter(layer=name)
    np.testing.assert_allclose(rows["value"].to_numpy(), exact.reshape(-1), rtol=1e-6)
    assert "highest" in (tmp_path / "D" / "report" / "aggregations.html").read_text()
    spawn("analyze", run, "--out", "E", "--aggregation", "mine:lowest", *told, cwd=tmp_path).refused("lowest")
    assert not (tmp_path / "E").exists()


def test_a_study_under_the_official_protocol(i2am: I2am, run: Path, tmp_path: Path) -> None:
    outcome = i2am("analyze", run, "--out", tmp_path / "D", "--protocol", "official", "--direct")
    assert outcome.status == 0
    table = pl.read_parquet(tmp_path / "D" / "tables" / "unified.parquet")
    assert table["protocol"].unique().to_list() == ["official"]
    page = (tmp_path / "D" / "report" / "index.html").read_text()
    assert "official" in page
    i2am("analyze", run, "--out", tmp_path / "E", "--protocol", "oficial").refused("official")


def test_prune_states_the_error_of_the_maps(run: Path, i2am: Callable[..., Outcome], tmp_path: Path) -> None:
    exact = i2am("prune", run, "--out", tmp_path / "exact.zarr", "--sample", "b", "--steps", "::2", "--json")
    assert exact.status == 0, exact.err
    assert exact.json["samples"] == ["b"]
    assert exact.json["errors"] == []
    small = i2am("prune", run, "--out", tmp_path / "small.zarr", "--bits", "4", "--heads", "1", "--json")
    assert small.status == 0, small.err
    assert small.json["bytes"]["after"] < small.json["bytes"]["before"]
    found = {(each["direction"], each["level"]): each["worst"] for each in small.json["errors"]}
    assert set(found) == {(d, level) for d in ("r2g", "g2r") for level in ("unified", "layer")}
    assert all(0 < worst < 1 for worst in found.values())
    full = i2am("prune", run, "--out", tmp_path / "full.zarr", "--bits", "23", "--json")
    assert all(each["worst"] == 0 for each in full.json["errors"])
    i2am("prune", run, "--out", tmp_path / "no.zarr", "--bits", "24").refused("expected 1 to 23")


def test_the_error_of_rounding_is_measured_on_the_same_heads(
    i2am: Callable[..., Outcome], tmp_path: Path
) -> None:
    """Layers with different numbers of heads; all bits are kept, so that every difference is a mistake."""
    rng = np.random.default_rng(1)
    specs = [LayerSpec(f"h{heads}", heads, 4, (4, 4), (3, 3), dtype="float32") for heads in (2, 4)]
    with create_run(tmp_path / "r.zarr", specs, [2, 1], ["a"]) as run, run.sample("a") as sink:
        for spec in specs:
            key = rng.normal(size=(spec.heads, 9, 4)).astype(np.float32)
            for step in range(2):
                query = rng.normal(size=(spec.heads, 16, 4)).astype(np.float32)
                sink.put(spec.name, step, query=query, key=key)
    ask = ("prune", tmp_path / "r.zarr", "--bits", "23", "--json")
    for name, heads in (("all", ()), ("some", ("--heads", "1"))):
        made = i2am(*ask, "--out", tmp_path / f"{name}.zarr", *heads)
        assert made.status == 0, made.err
        assert [each["worst"] for each in made.json["errors"]] == [0.0] * 4
    other = i2am(*ask, "--out", tmp_path / "other.zarr", "--heads", "::2")  # one head of h2, two of h4
    assert (other.status, other.json["errors"]) == (0, [])
    assert "not measured: layers keep different heads" in other.err
