"""Samples that fail by their own content, told from a machine that is broken; processes that hang."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from i2am.pipeline import jobs
from i2am.pipeline.jobs import MAX_FAILURES, MAX_UNKNOWN, run_job, stand_in
from i2am.storage.errors import CaptureError, StorageFull
from i2am.storage.tools.verify import verify
from i2am.storage.writing.failures import failures
from tests.flows.conftest import Outcome
from tests.flows.sweeps import Sweep, sweep_config, sweeps

COUNT = 7


class Model:
    """Fails for some samples, and for all once the machine is broken."""

    def __init__(self, broken: set[int], breaks_at: int | None = None, alone: bool = True) -> None:
        self.broken, self.breaks_at, self.alone = broken, breaks_at, alone
        self.asked: list[int] = []

    def __call__(self, image: Any, generator: Any) -> Any:
        seed = generator.initial_seed()
        self.asked.append(seed)
        if self.breaks_at is not None and len(self.asked) > self.breaks_at:
            raise RuntimeError("CUDA error: unspecified launch failure")
        if seed in self.broken or (seed >= 1 << 62 and not self.alone):
            raise ValueError("this sample cannot be painted")
        return SimpleNamespace(images=[image])


class Cap:
    """Keeps in memory what a capture commits."""

    def __init__(self, count: int, committed: set[str] = frozenset()) -> None:
        self.declared = [str(i) for i in range(count)]
        self.committed = set(committed)

    @property
    def missing(self) -> list[str]:
        return [id for id in self.declared if id not in self.committed]

    def is_committed(self, id: str) -> bool:
        return id in self.committed

    def samples(self, ids: Any, keep: Any, **images: Any) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def context() -> Iterator[Any]:
            yield [SimpleNamespace(annotate=lambda notes: None) for _ in ids]
            self.committed |= set(keep)

        return context()


def load(id: str) -> Any:
    return SimpleNamespace(id=id, seed=int(id), images={"image": Image.new("RGB", (8, 8))}, texts={})


def job(cap: Cap, model: Model) -> dict[str, Exception]:
    failed: dict[str, Exception] = {}

    def on_failure(ids: Any, error: Exception) -> None:
        failed.update(dict.fromkeys(ids, error))

    run_job(cap, model, load, jobs.Call({"image": "image"}, {}), on_failure=on_failure)  # type: ignore[arg-type]
    return failed


@pytest.mark.parametrize("number", range(1, COUNT))
def test_whatever_the_order_of_the_failures(number: int) -> None:
    """Every choice of broken samples of seven: the others are there, these are recorded."""
    for broken in combinations(range(COUNT), number):
        cap, model = Cap(COUNT), Model(set(broken))
        assert sorted(map(int, job(cap, model))) == list(broken)
        assert sorted(map(int, cap.committed)) == sorted(set(range(COUNT)) - set(broken))


def test_all_of_a_run_fail_by_their_content() -> None:
    """The model alone works, or a sample that another process committed does."""
    assert len(job(Cap(COUNT), Model(set(range(COUNT))))) == COUNT
    there = Cap(COUNT, committed={"2"})
    assert len(job(there, Model(set(range(COUNT)) - {2}, alone=False))) == COUNT - 1


@pytest.mark.parametrize("breaks_at", [0, 1, 4, 6])
def test_a_machine_that_breaks_is_no_failure_of_samples(breaks_at: int) -> None:
    cap, model = Cap(40), Model({0}, breaks_at)
    with pytest.raises(CaptureError, match=r"does not work .*CUDA error"):
        job(cap, model)
    assert len(model.asked) <= breaks_at + MAX_UNKNOWN + MAX_UNKNOWN // MAX_FAILURES
    failed: dict[str, Exception] = {}
    with pytest.raises(CaptureError):
        run_job(
            cap, Model(set(), 0), load, jobs.Call({"image": "image"}, {}),  # type: ignore[arg-type]
            on_failure=lambda ids, error: failed.update(dict.fromkeys(ids, error)),
        )  # fmt: skip
    assert failed == {}


def test_a_model_that_never_works_alone_is_tried_with_more_samples() -> None:
    """The first five fail by their content, and the model refuses what is no photo; the sixth works."""
    cap = Cap(9)
    assert sorted(job(cap, Model(set(range(5)), alone=False))) == ["0", "1", "2", "3", "4"]
    assert len(cap.committed) == 4


def test_a_full_disk_while_trying_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(task: Any) -> Any:
        raise StorageFull("no space")

    monkeypatch.setattr(jobs, "stand_in", full)
    with pytest.raises(StorageFull):
        job(Cap(COUNT), Model(set(range(COUNT))))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "1"])
def test_a_stand_in_has_the_sizes_and_none_of_the_content(mode: str) -> None:
    picture = Image.effect_noise((20, 12), 80).convert(mode)
    images = {"source": picture, "mask": picture.convert("L"), "reference": np.asarray(picture)}
    task = SimpleNamespace(id="a", seed=3, images=images, texts={"prompt": "secret"})
    found = stand_in(task)  # type: ignore[arg-type]
    for name, image in images.items():
        there, here = np.asarray(image), np.asarray(found.images[name])
        assert (there.shape, there.dtype) == (here.shape, here.dtype)
    assert set(np.unique(found.images["mask"])) == {0, 255}
    assert found.texts == {"prompt": "a photo"}
    assert 0 <= found.seed != task.seed


@pytest.fixture
def start() -> Iterator[Callable[..., Sweep]]:
    with sweeps() as starter:
        yield starter


def test_a_capture_and_a_sweep_record_them(
    config: Callable[..., Path], i2am: Callable[..., Outcome], start: Callable[..., Sweep], tmp_path: Path
) -> None:
    """The first three in a row; then a sweep whose second shard has nothing else."""
    broken = {"broken": ["scene-0000000", "scene-0000001", "scene-0000002"], "mended": str(tmp_path / "no")}
    pipeline = {"kind": "factory", "function": "tests.flows.tiny:build", "arguments": broken}
    done = i2am(
        "capture", config(pipeline=pipeline, samples={"scenes": {"count": 5}}), "--direct", "--keep-going"
    )
    assert done.status == 1, done.err
    assert list(failures(tmp_path / "tiny.zarr")) == broken["broken"]
    broken = broken | {"broken": [f"scene-000000{i}" for i in (2, 3, 4, 5)]}
    file = sweep_config(config, arguments=broken, out="swept.zarr", sweep={"shard": 4, "workers": 1})
    sweep = start(file, "--out", tmp_path / "swept.zarr")
    status, out, err = sweep.end()
    assert (status, json.loads(out)["lost"]) == (1, []), err
    assert list(failures(sweep.run)) == broken["broken"]
    assert verify(sweep.run).ok


def test_a_process_that_hangs_is_replaced(
    config: Callable[..., Path], start: Callable[..., Sweep], tmp_path: Path
) -> None:
    """One stops for good in its first step; steps that take long, but end, are a sign of life."""
    hangs = {"delay": 0.6, "hangs_without": str(tmp_path / "hung")}
    sweep = start(
        sweep_config(config, arguments=hangs, call={"num_inference_steps": 4},
                     samples={"scenes": {"count": 2}}, sweep={"workers": 1, "deadline": 20.0, "retries": 9})
    )  # fmt: skip
    status, out, err = sweep.end()
    assert status == 0, err
    (shard,) = json.loads(out)["shards"]
    assert shard["captured"] == 2
    assert shard["attempts"] > 1


def test_a_watchdog_counts_from_the_last_sign_of_life() -> None:
    import sys

    from i2am.flows.subprocesses import child
    from i2am.flows.sweep.watchdog import Watchdog

    command = [sys.executable, "-c", "import time, signal; signal.signal(2, signal.SIG_IGN); time.sleep(600)"]
    with Watchdog(2.0) as patient, child(command) as process:
        patient.guard(process)
        patient.pat()
        assert process.wait(60) == -9
        assert "made no step for 2 s" in patient.reason
    with Watchdog(600.0) as calm, child(command) as process:
        calm.guard(process)
    assert calm.reason == ""
