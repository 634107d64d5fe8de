"""The capture job: resume, refusal of another configuration, and the forecast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2am.flows.capture.forecast import forecast
from i2am.flows.capture.job import run_capture
from i2am.flows.config.load_yaml import load_capture
from i2am.flows.config.models import CaptureConfig
from i2am.flows.console.progress import Progress, listening
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.flows.conftest import Outcome

Write = Callable[..., Path]


@pytest.fixture
def settings(config: Write) -> Callable[..., CaptureConfig]:
    return lambda **changes: load_capture(config(**changes))


def files(run: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file of a run: inode, time of change, content."""
    return {
        str(path.relative_to(run)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in run.rglob("*")
        if path.is_file()
    }


def test_a_capture_and_its_summary(settings: Callable[..., CaptureConfig], tmp_path: Path) -> None:
    events: list[Progress] = []
    with listening(events.append):
        summary = run_capture(settings())
    run = open_run(tmp_path / "tiny.zarr")
    assert run.samples == ("scene-0000000", "scene-0000001")
    assert (summary["captured"], summary["committed"], summary["declared"]) == (2, 2, 2)
    assert [row["seed"] for row in summary["samples"]] == [0, 1]
    assert [(event.done, event.total) for event in events] == [(0, 2), (1, 2), (2, 2)]
    assert run.attrs["seeds"] == {"scene-0000000": 0, "scene-0000001": 1}
    assert run.attrs["configuration"]["call"] == {"num_inference_steps": 2}
    assert set(run.images) == {"source", "reference", "mask", "reference_mask", "generated"}
    assert verify(tmp_path / "tiny.zarr").ok


def test_a_complete_run_is_left_alone_and_needs_no_model(
    settings: Callable[..., CaptureConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_capture(settings())
    before = files(tmp_path / "tiny.zarr")

    def load(config: CaptureConfig) -> None:
        raise AssertionError("the pipeline was loaded")

    monkeypatch.setattr("i2am.flows.capture.load_pipeline.load_pipeline", load)
    assert run_capture(settings())["captured"] == 0
    assert files(tmp_path / "tiny.zarr") == before


def test_a_capture_goes_on_where_it_stopped(settings: Callable[..., CaptureConfig], tmp_path: Path) -> None:
    whole = settings(samples={"scenes": {"count": 3}})
    run_capture(whole.model_copy(update={"out": str(tmp_path / "whole.zarr")}))

    class Stop(Exception):
        pass

    def stop(event: Progress) -> None:
        if event.done == 1:
            raise Stop

    with pytest.raises(Stop), listening(stop):
        run_capture(whole)
    before = files(tmp_path / "tiny.zarr")
    assert open_run(tmp_path / "tiny.zarr").samples == ("scene-0000000",)
    assert run_capture(whole)["captured"] == 2
    after = files(tmp_path / "tiny.zarr")
    assert {name: after[name] for name in before} == before
    one, other = open_run(tmp_path / "whole.zarr"), open_run(tmp_path / "tiny.zarr")
    for layer in one.layers:
        np.testing.assert_array_equal(one.scores(layer).compute(), other.scores(layer).compute())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"call": {"num_inference_steps": 3}},
            r"call.num_inference_steps; expected call.num_inference_steps: 2; got 3",
        ),
        ({"samples": {"scenes": {"count": 9}}}, r"samples.scenes.count"),
        ({"dtype": "float16"}, r"dtype"),
        ({"layers": ["*mid*"]}, r"layers; expected layers: nothing; got \['\*mid\*'\]"),
        ({"seed": 4, "batch_size": 2}, r"configuration: batch_size, seed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_configuration_is_refused_with_the_keys_that_differ(
    settings: Callable[..., CaptureConfig],
    config: Write,
    i2am: Callable[..., Outcome],
    changes: dict[str, object],
    words: str,
) -> None:
    run_capture(settings())
    i2am("capture", config(**changes), "--direct", "--quiet").refused(words)


def test_a_forecast_is_within_five_percent(settings: Callable[..., CaptureConfig], tmp_path: Path) -> None:
    wanted = settings(samples={"scenes": {"count": 3}}, batch_size=2)
    predicted = forecast(wanted)
    assert not (tmp_path / "tiny.zarr").exists()
    run_capture(wanted)
    found = files(tmp_path / "tiny.zarr")
    assert predicted.total_files == pytest.approx(len(found), rel=0.05)
    assert predicted.total_bytes == pytest.approx(
        sum(len(content) for _, _, content in found.values()), rel=0.05
    )


def test_the_plan_command_for_programs(i2am: Callable[..., Outcome], config: Write) -> None:
    outcome = i2am("plan", config(), "--json")
    assert outcome.status == 0, outcome.err
    assert outcome.json["samples"] == 2
    assert outcome.json["steps"] == 2
    assert len(outcome.json["layers"]) == 4
    assert outcome.json["bytes"] > 2 * sum(layer["bytes_per_sample"] for layer in outcome.json["layers"])


def test_a_manifest(settings: Callable[..., CaptureConfig], tmp_path: Path) -> None:
    """Ids keep their zeros, seeds are taken or counted, images are those of the files."""
    rng = np.random.default_rng(0)
    for name in ("r.png", "s.png"):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / name)
    hole = np.zeros((64, 64), np.uint8)
    hole[20:40, 20:40] = 255
    Image.fromarray(hole).save(tmp_path / "m.png")
    (tmp_path / "m.csv").write_text(
        "id,reference,source,mask,seed,photographer\n007,r.png,s.png,m.png,11,A\n008,r.png,s.png,m.png,,B\n"
    )
    run_capture(settings(samples={"manifest": "m.csv"}, seed=40))
    run = open_run(tmp_path / "tiny.zarr")
    assert run.samples == ("007", "008")
    assert run.attrs["seeds"] == {"007": 11, "008": 41}
    with Image.open(tmp_path / "r.png") as image:
        np.testing.assert_array_equal(run.image("reference", "007"), np.asarray(image))
    np.testing.assert_array_equal(run.image("mask", "008")[..., 0], hole)
    generated = run.image("generated", "007")
    np.testing.assert_array_equal(generated[hole == 0], run.image("source", "007")[hole == 0])


def test_a_parquet_manifest_says_the_same_as_a_csv(
    settings: Callable[..., CaptureConfig], tmp_path: Path
) -> None:
    import polars

    from i2am.flows.datasets.open import open_samples

    for name in ("r.png", "s.png", "m.png"):
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / name)
    rows = {
        "id": ["x", "y"],
        "reference": ["r.png"] * 2,
        "source": ["s.png"] * 2,
        "mask": ["m.png"] * 2,
        "seed": [3, None],
    }
    polars.DataFrame(rows).write_parquet(tmp_path / "m.parquet")
    polars.DataFrame(rows).write_csv(tmp_path / "m.csv")
    found = [open_samples(settings(samples={"manifest": f"m.{kind}"})) for kind in ("csv", "parquet")]
    assert found[0].seeds == found[1].seeds == {"x": 3, "y": 1}
    assert found[0].load("x").images.keys() == found[1].load("x").images.keys()


def test_a_limit_takes_the_first_rows(settings: Callable[..., CaptureConfig], tmp_path: Path) -> None:
    from i2am.flows.datasets.open import open_samples

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "r.png")
    (tmp_path / "m.csv").write_text("id,reference\n" + "".join(f"s{i},r.png\n" for i in range(5)))
    found = open_samples(settings(samples={"manifest": "m.csv", "limit": 2}))
    assert found.ids == ("s0", "s1")


def test_selections_reach_the_run(settings: Callable[..., CaptureConfig], tmp_path: Path) -> None:
    run_capture(settings(layers=["*mid_block*"], steps="::2", heads="1", call={"num_inference_steps": 4}))
    run = open_run(tmp_path / "tiny.zarr")
    (layer,) = run.layers.values()
    assert "mid_block" in layer.name
    assert layer.heads == 1
    assert len(run.timesteps) == 2


def test_representations_hold_the_same_scores(settings: Callable[..., CaptureConfig], tmp_path: Path) -> None:
    runs = {}
    for kind in ("factors", "scores"):
        run_capture(settings(out=f"{kind}.zarr", representation=kind, samples={"scenes": {"count": 1}}))
        runs[kind] = open_run(tmp_path / f"{kind}.zarr")
    for layer in runs["factors"].layers:
        assert runs["scores"].layers[layer].representation == "scores"
        one, other = (run.scores(layer).compute() for run in runs.values())
        np.testing.assert_allclose(one, other, atol=1e-5)
