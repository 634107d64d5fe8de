"""Several captures of one run: what another process is writing is waited for, or taken up when given up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import i2am
from i2am.flows.capture.job import capture_samples, missing_samples, prepare, run_capture
from i2am.flows.config.load_yaml import load_capture
from i2am.flows.console.progress import Progress, listening
from i2am.flows.datasets.open import open_samples
from i2am.pipeline import jobs
from i2am.pipeline.recording import run_target
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.open import open_run

COUNT = 4
OTHERS = "scene-0000001"


@pytest.fixture
def whole(config: Callable[..., Path], tmp_path: Path, batch: int) -> Path:
    """An undisturbed run."""
    file = config(samples={"scenes": {"count": COUNT}}, batch_size=batch)
    run_capture(load_capture(file, str(tmp_path / "whole.zarr")))
    return tmp_path / "whole.zarr"


def copy_of(run: i2am.Run, sample: str, writer: i2am.RunWriter, sink: i2am.Sink) -> None:
    """Put what an undisturbed run holds of a sample."""
    position = run.samples.index(sample)
    for layer, spec in run.layers.items():
        block = run.read(layer, sample)
        for step in range(len(run.timesteps)):
            if block.scores is not None:
                sink.put(layer, step, scores=block.scores[step])
            else:
                assert block.query is not None
                assert block.key is not None
                sink.put(layer, step, query=block.query[step], key=block.key[0 if spec.static_key else step])
            norms = {"contribution": run.contribution(layer)[position, step].compute()}
            if step == 0:
                norms["value_norm"] = run.value_norm(layer)[position, 0].compute()
            sink.put(layer, step, **norms)
    for name, image in run.record(sample)["images"].items():
        writer.add_image(name, image["shape"])
        sink.put_image(name, run.image(name, sample))


def same(left: Path, right: Path) -> None:
    a, b = open_run(left), open_run(right)
    assert a.samples == b.samples == a.declared
    for layer in a.layers:
        assert isinstance(a.layers[layer], LayerSpec)
        np.testing.assert_array_equal(a.scores(layer).compute(), b.scores(layer).compute())


@pytest.mark.parametrize("end", ["commits", "gives up"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_sample_in_other_hands_is_waited_for(
    config: Callable[..., Path],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    batch: int,
) -> None:
    monkeypatch.setattr(jobs, "FIRST_PAUSE", 0.05)
    settings = load_capture(config(samples={"scenes": {"count": COUNT}}, batch_size=batch))
    run_capture(settings, only=("scene-0000000",))
    let_go, held = threading.Event(), threading.Event()

    def other() -> None:
        """Another writer: it holds the sample, for as long as we like."""
        with (
            suppress(RuntimeError),
            i2am.resume_run(settings.out) as writer,
            writer.sample(OTHERS) as sink,
        ):
            copy_of(open_run(whole), OTHERS, writer, sink)
            held.set()
            assert let_go.wait(20)
            if end == "gives up":
                raise RuntimeError

    heard: list[Progress] = []

    def listen(event: Progress) -> None:
        heard.append(event)
        if event.stage.startswith("wait"):
            let_go.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(20)
    try:
        with listening(listen):
            summary: dict[str, Any] = run_capture(settings)
    finally:
        let_go.set()
        thread.join()
    assert any(event.stage.startswith("wait") for event in heard)
    assert summary["committed"] == COUNT
    assert summary["failed"] == []
    same(Path(settings.out), whole)
    report = i2am.verify(settings.out)
    assert report.ok
    assert all("not compared with the kernel" in note for note in report.notes)  # what the other hands wrote


def test_a_run_that_another_configuration_has_just_made_is_refused(
    config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both began where no run was yet; the later one must not fill the other's run."""
    first = load_capture(config())
    second = first.model_copy(update={"call": {**first.call, "guidance_scale": 3.5}})
    make = run_target.create_run

    def late(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(run_target, "create_run", make)
        run_capture(first, only=("scene-0000000",))
        return make(*args, **options)

    monkeypatch.setattr(run_target, "create_run", late)
    with pytest.raises(i2am.ConfigError, match="just been made by another process"):
        run_capture(second)
    assert open_run(first.out).samples == ("scene-0000000",)


def test_a_run_made_while_the_model_was_loading_is_refused_too(config: Callable[..., Path]) -> None:
    first = load_capture(config())
    second = first.model_copy(update={"call": {**first.call, "guidance_scale": 3.5}})
    samples = open_samples(second)
    before, ids = missing_samples(second, samples)
    prepared = prepare(second)
    run_capture(first, only=("scene-0000000",))
    with pytest.raises(i2am.ConfigError, match="just been made by another process"):
        capture_samples(second, samples, prepared, ids, before, second.deadline)
    assert open_run(first.out).samples == ("scene-0000000",)
