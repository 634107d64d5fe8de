"""The small parts: selection, timesteps, images, transfer, registry, provenance, probe, jobs."""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import i2am
from i2am.pipeline.adapters.registry import adapters, find_adapter
from i2am.pipeline.capture import capture
from i2am.pipeline.jobs import Call, run_job
from i2am.pipeline.probe import probe
from i2am.pipeline.recording.images import to_uint8
from i2am.pipeline.recording.provenance import describe
from i2am.pipeline.taps.host_copies import HostCopies
from i2am.pipeline.timesteps import Timestep, read_timestep, remaining_timesteps
from i2am.storage.errors import CaptureError, ShapeMismatch, UnknownName
from i2am.storage.name_patterns import matching_names
from i2am.storage.reading.open import open_run
from i2am.storage.writing.sink import Sink
from tests.pipeline import models


def test_selected_names_follow_patterns_and_the_models_order():
    known = ["down.0", "mid", "up.0", "up.1"]
    assert matching_names("layer", ["up*", "down.0"], known) == ["down.0", "up.0", "up.1"]
    assert matching_names("layer", "mid", known) == ["mid"]
    with pytest.raises(UnknownName, match="'midd'.*'mid'"):
        matching_names("layer", "midd", known)


def test_timesteps_come_from_the_call_and_the_scheduler():
    assert read_timestep(torch.tensor(7)) == Timestep(7.0, 0.0)
    assert read_timestep(torch.tensor([3, 3])).value == 3.0
    for value in (None, torch.tensor([3, 4])):
        with pytest.raises(CaptureError, match="timestep of a denoiser call"):
            read_timestep(value)

    class Scheduler:
        timesteps = torch.tensor([9, 6, 6, 3])

    assert remaining_timesteps(Scheduler(), 9.0) == [9.0, 6.0, 6.0, 3.0]
    assert remaining_timesteps(Scheduler(), 6.0) == [6.0, 6.0, 3.0]  # a partial schedule starts late
    with pytest.raises(CaptureError, match=r"timestep 5.*capture\(\.\.\., timesteps"):
        remaining_timesteps(Scheduler(), 5.0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.data())
def test_a_partial_schedule_is_found_by_its_begin_or_its_length(numbers, data):
    """However often a timestep stands in the schedule."""
    schedule = [float(n) for n in sorted(numbers, reverse=True)]
    start = data.draw(st.integers(0, len(schedule) - 1))
    count = data.draw(st.integers(1, len(schedule) - start))
    scheduler = SimpleNamespace(timesteps=torch.tensor(schedule), begin_index=start)
    first = schedule[start]
    assert remaining_timesteps(scheduler, first, 0.0, count) == schedule[start : start + count]
    assert remaining_timesteps(scheduler, first) == schedule[start:]
    scheduler.begin_index = None  # a scheduler that keeps none: a late start runs to the end
    assert remaining_timesteps(scheduler, first, 0.0, len(schedule) - start) == schedule[start:]
    scheduler.begin_index = len(schedule)  # left from another generation
    assert remaining_timesteps(scheduler, first, 0.0, len(schedule) - start) == schedule[start:]
    early = remaining_timesteps(scheduler, schedule[0], 0.0, count)
    assert len(early) == count


@given(st.floats(0.01, 1000), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_a_timestep_rounded_on_its_way_is_still_known(timestep, dtype):
    seen = read_timestep(torch.tensor([timestep], dtype=torch.float64).to(dtype) / 1000 * 1000)
    assert seen.near(timestep)
    assert not seen.near(timestep * 1.05)


def test_images_in_every_form_become_uint8():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(to_uint8("x", grey), grey[..., None])
    np.testing.assert_array_equal(to_uint8("x", Image.fromarray(grey)), grey[..., None])
    np.testing.assert_array_equal(to_uint8("x", grey > 3), ((grey > 3) * 255)[..., None])
    np.testing.assert_array_equal(to_uint8("x", grey / 255), grey[..., None])
    assert to_uint8("x", Image.new("RGBA", (4, 3))).shape == (3, 4, 3)
    for bad in (
        np.zeros((2, 2, 2, 2)),
        np.zeros((2, 2, 5), np.uint8),
        np.full((2, 2), 3.0),
        np.full((2, 2), np.nan),
    ):
        with pytest.raises(ShapeMismatch, match="image 'x'"):
            to_uint8("x", bad)


def test_host_copies_are_their_own_and_carry_errors():
    copies, got = HostCopies(), []
    tensor = torch.arange(6.0).view(2, 3)
    copies.submit(tensor.T, got.append)
    tensor.zero_()
    np.testing.assert_array_equal(got[0], np.arange(6.0).reshape(2, 3).T)
    assert got[0].flags.c_contiguous
    copies.submit(torch.tensor([1.5], dtype=torch.bfloat16), got.append)
    assert got[1].dtype == np.float32
    copies.drain()
    copies.close()


@pytest.mark.gpu
def test_host_copies_from_a_gpu_are_ordered_bounded_and_carry_errors():
    copies, got, gate = HostCopies(limit=1 << 20), [], threading.Event()
    tensors = [torch.full((1 << 18,), float(i), device="cuda") for i in range(8)]

    def slow(array):
        gate.wait(5)
        got.append(array[0])

    threading.Timer(0.2, gate.set).start()
    for tensor in tensors:
        copies.submit(tensor, slow)
        tensor.zero_()
    copies.drain()
    assert got == [float(i) for i in range(8)]

    def fail(array):
        raise OSError("disk")

    copies.submit(tensors[0], fail)
    with pytest.raises(OSError, match="disk"):
        copies.drain()
    copies.close()


def test_adapters_are_found_by_class_by_name_and_as_given():
    pipe = models.painter()
    adapter = adapters()["diffusers-unet"]
    assert (
        find_adapter(pipe) is find_adapter(pipe, "diffusers-unet") is find_adapter(pipe, adapter) is adapter
    )
    assert adapter.inputs(pipe)["reference_image"] == "reference"

    class Derived(type(pipe)):
        pass

    assert adapter.matches(Derived.__new__(Derived))


def test_two_adapters_that_match_are_refused(monkeypatch):
    adapter = adapters()["diffusers-unet"]
    monkeypatch.setattr("i2am.pipeline.adapters.registry.adapters", lambda: {"one": adapter, "two": adapter})
    with pytest.raises(
        CaptureError, match="exactly one that matches.*got diffusers-unet, diffusers-unet.*name one"
    ):
        find_adapter(models.painter())


def test_configurations_that_json_lacks_are_kept_as_text(tmp_path):
    """DPM++'s -inf, and whatever else a configuration holds; the same text in every process."""
    config = {
        "lambda_min_clipped": -math.inf,
        "nested": [{"a": math.nan}, (math.inf, 1.5)],
        "numpy": np.float32(0.25),
        "trained_betas": np.array([0.5, np.inf]),
        "tensor": torch.tensor([1, 2]),
        "dtype": torch.float16,
        "set": {"b", "a"},
        "object": object(),
        "path": Path("x/y"),
        3: True,
        "_private": object(),
    }
    pipe = SimpleNamespace(name_or_path="", scheduler=SimpleNamespace(config=config))
    found = describe(pipe)["scheduler"]
    assert found == {
        "class": "SimpleNamespace",
        "lambda_min_clipped": "-inf",
        "nested": [{"a": "nan"}, ["inf", 1.5]],
        "numpy": 0.25,
        "trained_betas": [0.5, "inf"],
        "tensor": [1, 2],
        "dtype": "torch.float16",
        "set": ["a", "b"],
        "object": "<object object>",
        "path": "x/y",
        "3": True,
    }
    layer = i2am.LayerSpec("l", 1, 1, (1, 1), (1, 1))
    path = tmp_path / "run.zarr"
    i2am.create_run(path, [layer], [1], ["a"], attrs={"scheduler": found, "own": {"rate": math.inf}}).close()
    run = i2am.open_run(path)
    assert run.attrs["scheduler"] == found
    assert run.attrs["own"] == {"rate": "inf"}


def test_provenance_names_model_scheduler_software_and_weights(tmp_path):
    pipe = models.painter()
    pipe.save_pretrained(tmp_path / "small-painter", safe_serialization=True)
    loaded = type(pipe).from_pretrained(tmp_path / "small-painter", use_safetensors=True)
    facts = describe(loaded)
    assert facts["model"] == "small-painter"
    assert facts["pipeline_class"] == "i2am.pipeline.embedded.painter.ReferencePainter"
    assert facts["scheduler"]["prediction_type"] == "sample"
    assert facts["software"]["torch"] == torch.__version__
    files = sorted((tmp_path / "small-painter").rglob("*.safetensors"))
    assert facts["weights_sha256"] == {
        f.relative_to(tmp_path / "small-painter").as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in files
    }
    assert describe(pipe)["weights_sha256"] == {}


@dataclass
class SmallTask:
    id: str
    seed: int
    images: dict = field(default_factory=dict)
    texts: dict = field(default_factory=dict)

    @classmethod
    def load(cls, id):
        seed = int(id)
        images = {
            "source": models.picture(seed),
            "mask": models.hole(),
            "reference": models.picture(seed + 50),
        }
        return cls(id, seed, images)


CALL = Call(
    {"image": "source", "mask_image": "mask", "reference_image": "reference"},
    {"num_inference_steps": 2, "output_type": "np"},
)


def test_a_probe_learns_what_a_run_will_hold(tmp_path):
    pipe = models.painter()
    tasks = [SmallTask.load(str(i)) for i in range(2)]
    geometry = probe(pipe, lambda: CALL(pipe, tasks), samples=2, steps=slice(1, None))
    with capture(pipe, tmp_path / "run.zarr", ["0", "1"], steps=slice(1, None)) as cap:
        run_job(cap, pipe, SmallTask.load, CALL, batch_size=2)
    run = open_run(tmp_path / "run.zarr")
    assert geometry.calls == (("uncond", "cond"),)
    assert list(geometry.timesteps) == list(run.timesteps)
    assert [s.name for s in geometry.layers] == list(run.layers)
    for spec in geometry.layers:
        assert (spec.gen_grid, spec.heads) == (run.layers[spec.name].gen_grid, run.layers[spec.name].heads)
    assert not any(m._forward_hooks for m in pipe.unet.modules())
    with pytest.raises(CaptureError, match="probe|denoiser calls"):
        probe(pipe, lambda: None)


def test_a_batch_that_was_half_committed_is_completed_with_the_same_bits(tmp_path, monkeypatch):
    pipe, ids = models.painter(), [str(i) for i in range(4)]
    for name in ("whole", "cut"):
        with capture(pipe, tmp_path / f"{name}.zarr", ids) as cap:
            run_job(cap, pipe, SmallTask.load, CALL, batch_size=2, limit=4 if name == "whole" else 2)

    commit = Sink.commit

    def fail_for_two(self):
        if self.sample == "2":
            raise OSError("disk")
        return commit(self)

    monkeypatch.setattr(Sink, "commit", fail_for_two)
    with pytest.raises(OSError, match="disk"), capture(pipe, tmp_path / "cut.zarr") as cap:
        run_job(cap, pipe, SmallTask.load, CALL, batch_size=2)
    monkeypatch.undo()
    assert open_run(tmp_path / "cut.zarr").samples == ("0", "1", "3")
    before = (tmp_path / "cut.zarr" / "commits" / "3.json").read_bytes()
    with capture(pipe, tmp_path / "cut.zarr") as cap:
        assert run_job(cap, pipe, SmallTask.load, CALL, batch_size=2) == 1
    assert (tmp_path / "cut.zarr" / "commits" / "3.json").read_bytes() == before
    whole, cut = open_run(tmp_path / "whole.zarr"), open_run(tmp_path / "cut.zarr")
    for name in whole.layers:
        np.testing.assert_array_equal(cut.scores(name), whole.scores(name))
    for id in ids:
        np.testing.assert_array_equal(cut.image("generated", id), whole.image("generated", id))


def test_a_job_takes_what_is_missing_in_batches_of_any_size(tmp_path):
    pipe, ids = models.painter(), [str(i) for i in range(5)]
    with capture(pipe, tmp_path / "two.zarr", ids) as cap:
        assert run_job(cap, pipe, SmallTask.load, CALL, batch_size=2, limit=3) == 3
        assert cap.missing == ("3", "4")
    with capture(pipe, tmp_path / "two.zarr") as cap:
        assert run_job(cap, pipe, SmallTask.load, CALL, batch_size=2) == 2
    with capture(pipe, tmp_path / "one.zarr", ids) as cap:
        assert run_job(cap, pipe, SmallTask.load, CALL) == 5
    two, one = open_run(tmp_path / "two.zarr"), open_run(tmp_path / "one.zarr")
    assert two.samples == one.samples == tuple(ids)
    for id in ids:
        assert two.record(id)["annotations"]["seed"] == int(id)
        difference = two.image("generated", id).astype(int) - one.image("generated", id)
        assert np.abs(difference).max() <= 1
    for name in one.layers:
        np.testing.assert_allclose(two.scores(name), one.scores(name), rtol=1e-3, atol=1e-3)
