from __future__ import annotations

import numpy as np
import pytest
import torch

from i2am.pipeline.capture import capture
from i2am.pipeline.events import RunOpened, SampleDone, StepDone
from i2am.storage.errors import AlreadyExists, CaptureError, InputError, ShapeMismatch, UnknownName
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.pipeline import models
from tests.pipeline.spy import attention_witness

STEPS = 3


def generate(pipe, count=1, guidance=2.0, seed=0, height=20, width=20, steps=STEPS):
    """``count`` images [y, x, 3] of the small painter, each from its own seed."""
    return pipe(
        [models.picture(10 + i, height, width) for i in range(count)],
        [models.hole(height, width) for _ in range(count)],
        [models.picture(20 + i) for i in range(count)],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(count)],
        output_type="np",
    ).images


def hook_count(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def record(pipe, path, ids=("a",), images=None, **options):
    """Capture one batch; the generated images."""
    images = images or {}
    with capture(pipe, path, samples=list(ids), **options) as cap, cap.samples(list(ids)) as handles:
        out = generate(pipe, len(ids), **images)
        for handle, image in zip(handles, out, strict=True):
            handle.generated = image
    return out


@pytest.mark.parametrize(
    ("count", "guidance", "height", "width"),
    [(1, 1.0, 20, 20), (1, 2.0, 24, 16), (3, 1.0, 24, 16), (3, 2.0, 20, 20)],
)
def test_images_are_equal_and_scores_are_the_models_own(tmp_path, count, guidance, height, width):
    pipe = models.painter()
    size = {"guidance": guidance, "height": height, "width": width}
    plain = generate(pipe, count, **size)
    ids = [f"s{i}" for i in range(count)]
    captured = record(pipe, tmp_path / "run.zarr", ids, size)
    np.testing.assert_array_equal(captured, plain)
    np.testing.assert_array_equal(generate(pipe, count, **size), plain)

    with attention_witness(pipe.unet) as seen:
        generate(pipe, count, **size)
    run = open_run(tmp_path / "run.zarr")
    assert list(run.samples) == ids
    assert set(run.layers) == set(seen)
    assert len(run.layers) == 4
    rows = count * (2 if guidance > 1 else 1)
    for name, spec in run.layers.items():
        scale = 2 if "mid_block" in name else 1
        assert spec.gen_grid == (height // 2 // scale, width // 2 // scale)
        assert (spec.ref_grid, spec.ref_prefix, spec.dtype, spec.heads) == ((5, 5), 0, "float32", 2)
        logits, probabilities = (
            np.stack(
                [call[k].unflatten(0, (rows, spec.heads))[-count:].numpy() for call in seen[name]], axis=1
            )
            for k in (0, 1)
        )
        scores = run.scores(name).compute()
        assert scores.shape == (count, STEPS, spec.heads, spec.gen, 25)
        np.testing.assert_allclose(scores, logits, rtol=1e-5, atol=1e-5 * np.abs(logits).max())
        power = np.exp(scores - scores.max(-1, keepdims=True))
        np.testing.assert_allclose(power / power.sum(-1, keepdims=True), probabilities, atol=1e-5)
    assert list(run.timesteps) == [999.0, 666.0, 332.0]
    assert verify(tmp_path / "run.zarr").ok


@pytest.mark.parametrize("representation", ["factors", "scores"])
def test_both_representations_hold_the_same_scores(tmp_path, representation):
    pipe = models.painter()
    record(pipe, tmp_path / "auto.zarr")
    record(pipe, tmp_path / "one.zarr", representation=representation)
    first, second = open_run(tmp_path / "auto.zarr"), open_run(tmp_path / "one.zarr")
    for name in first.layers:
        assert second.layers[name].representation == representation
        np.testing.assert_allclose(second.scores(name), first.scores(name), rtol=1e-5, atol=1e-6)


def test_roles_are_kept_apart(tmp_path):
    pipe = models.painter()
    record(pipe, tmp_path / "run.zarr", ["a", "b"], roles=("uncond", "cond"))
    with attention_witness(pipe.unet) as seen:
        generate(pipe, 2)
    run = open_run(tmp_path / "run.zarr")
    assert run.attrs["guidance"] == {"calls": [["uncond", "cond"]]}
    for name, calls in seen.items():
        for role, first in (("uncond", 0), ("cond", 2)):
            stored = name if role == "cond" else f"{name}@uncond"
            assert run.layers[stored].role == role
            logits = np.stack([c[0].unflatten(0, (4, 2))[first : first + 2].numpy() for c in calls], axis=1)
            np.testing.assert_allclose(run.scores(stored), logits, rtol=1e-5, atol=1e-5)


def test_layers_steps_and_heads_can_be_chosen(tmp_path):
    pipe = models.painter()
    record(pipe, tmp_path / "all.zarr")
    record(pipe, tmp_path / "few.zarr", layers="unet.up_blocks*", steps=[0, -1], heads=[1])
    everything, few = open_run(tmp_path / "all.zarr"), open_run(tmp_path / "few.zarr")
    assert list(few.layers) == [name for name in everything.layers if "up_blocks" in name]
    assert list(few.timesteps) == [999.0, 332.0]
    for name in few.layers:
        np.testing.assert_array_equal(few.scores(name), everything.scores(name)[:, [0, 2]][:, :, [1]])
    record(pipe, tmp_path / "late.zarr", steps=slice(1, None))
    assert list(open_run(tmp_path / "late.zarr").timesteps) == [666.0, 332.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_exact(tmp_path, dtype):
    pipe = models.painter().to(dtype=dtype)
    kept = []
    layer = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    plain = generate(pipe)
    handle = layer.to_q.register_forward_hook(lambda m, a, out: kept.append(out[1].clone()))
    np.testing.assert_array_equal(record(pipe, tmp_path / "run.zarr", representation="factors"), plain)
    handle.remove()
    run = open_run(tmp_path / "run.zarr")
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    assert run.layers[name].dtype == str(dtype).removeprefix("torch.")
    stored = run.read(name, "a").query.astype(np.float32)
    own = torch.stack(kept).float().unflatten(-1, (2, -1)).transpose(1, 2).numpy()
    np.testing.assert_array_equal(stored, own)


def test_images_and_notes_arrive(tmp_path):
    pipe, events = models.painter(), []
    with capture(
        pipe, tmp_path / "run.zarr", samples=["a"], attrs={"why": "test"}, on_event=events.append
    ) as cap:
        images = {
            "source": models.picture(1),
            "mask": models.hole(),
            "reference": np.asarray(models.picture(2)),
        }
        with cap.sample("a", **images, reference_mask=np.eye(20, dtype=bool)) as s:
            s.generated = generate(pipe)[0]
            s.annotate(seed=7)
    run = open_run(tmp_path / "run.zarr")
    np.testing.assert_array_equal(run.image("source", "a"), np.asarray(models.picture(1)))
    np.testing.assert_array_equal(run.image("mask", "a")[..., 0], np.asarray(models.hole()))
    np.testing.assert_array_equal(run.image("reference_mask", "a")[..., 0], np.eye(20, dtype=np.uint8) * 255)
    np.testing.assert_array_equal(run.image("generated", "a"), generate(pipe)[0])
    assert run.attrs["why"] == "test"
    assert run.attrs["adapter"] == "diffusers-unet"
    assert run.attrs["scheduler"]["class"] == "DDIMScheduler"
    assert events[0] == RunOpened(str(tmp_path / "run.zarr"), 1, 1)
    assert [e.step for e in events if isinstance(e, StepDone)] == [1, 2, 3]
    assert [e.sample for e in events if isinstance(e, SampleDone)] == ["a"]


def test_a_capture_resumes_and_never_redoes(tmp_path):
    pipe, path = models.painter(), tmp_path / "run.zarr"
    with capture(pipe, path, samples=["a", "b"]) as cap, cap.sample("a") as s:
        s.generated = generate(pipe)[0]
    before = (path / "commits" / "a.json").stat().st_mtime_ns
    with capture(pipe, path) as cap:
        assert (cap.declared, cap.missing) == (("a", "b"), ("b",))
        with pytest.raises(AlreadyExists, match="cap.missing"), cap.sample("a"):
            pass
        with cap.sample("b") as s:
            s.generated = generate(pipe, seed=1)[0]
        assert cap.missing == ()
    assert (path / "commits" / "a.json").stat().st_mtime_ns == before
    assert verify(path).ok


def test_another_geometry_does_not_enter_a_run(tmp_path):
    pipe, path = models.painter(), tmp_path / "run.zarr"
    with capture(pipe, path, samples=["a", "b", "c"]) as cap:
        with cap.sample("a"):
            generate(pipe)
        with (
            pytest.raises(ShapeMismatch, match="unet.down_blocks.0.*expected.*runs of their own"),
            cap.sample("b"),
        ):
            generate(pipe, height=24)
        with pytest.raises(ShapeMismatch, match="timesteps of the run"), cap.sample("b"):
            generate(pipe, steps=4)
        with cap.sample("c"):
            generate(pipe)
    assert open_run(path).samples == ("a", "c")
    with pytest.raises(UnknownName, match="'z'"), capture(pipe, path, samples=["z"]):
        pass


def test_hooks_leave_after_success_and_after_every_failure(tmp_path, monkeypatch):
    pipe = models.painter()
    before = hook_count(pipe.unet)
    record(pipe, tmp_path / "run.zarr")
    assert hook_count(pipe.unet) == before

    with (
        pytest.raises(UnknownName, match="layer"),
        capture(pipe, tmp_path / "x.zarr", ["a"], layers="nothing*"),
    ):
        pass
    assert hook_count(pipe.unet) == before

    def crash(*args, **kwargs):
        raise RuntimeError("out of memory")

    block = pipe.unet.up_blocks[1].attentions[1]
    monkeypatch.setattr(block, "forward", crash)
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        capture(pipe, tmp_path / "crash.zarr", ["a"]) as cap,
        cap.sample("a"),
    ):
        generate(pipe)
    assert hook_count(pipe.unet) == before
    monkeypatch.undo()

    site = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    monkeypatch.setattr(site.to_k, "register_forward_hook", crash)
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        capture(pipe, tmp_path / "y.zarr", ["a"]) as cap,
        cap.sample("a"),
    ):
        pass
    assert hook_count(pipe.unet) == before


def test_a_crash_leaves_no_sample_and_the_next_one_works(tmp_path):
    pipe, path = models.painter(), tmp_path / "run.zarr"
    with capture(pipe, path, samples=["a", "b"]) as cap:
        with pytest.raises(RuntimeError, match="boom"), cap.sample("a"):
            generate(pipe)
            raise RuntimeError("boom")
        with cap.sample("b"):
            generate(pipe)
        assert cap.missing == ("a",)
        with cap.sample("a"):
            generate(pipe)
    assert verify(path).ok
    assert set(open_run(path).samples) == {"a", "b"}


def test_wrong_use_is_named(tmp_path):
    pipe, path = models.painter(), tmp_path / "run.zarr"
    with capture(pipe, path, samples=["a", "b", "c"]) as cap:
        with pytest.raises(CaptureError, match="one id for each"), cap.samples(["a", "b", "c"]):
            generate(pipe, 1)
        with pytest.raises(CaptureError, match="rows for one sample.*1 .cond. or 2"), cap.sample("a"):
            generate(pipe, 3)
        with pytest.raises(CaptureError, match="no further step"), cap.sample("a"):
            generate(pipe)
            generate(pipe)
        with pytest.raises(CaptureError, match="denoiser calls in the sample context"), cap.sample("a"):
            pass
        with pytest.raises(UnknownName, match="did you mean|expected"), cap.sample("d"):
            pass
        with pytest.raises(InputError, match="each once"), cap.samples(["a", "a"]):
            pass
        with (
            pytest.raises(InputError, match="one for each id"),
            cap.samples(["a", "b"], mask=[models.hole()]),
        ):
            pass
        with pytest.raises(CaptureError, match="one at a time"), cap.sample("a"), cap.sample("b"):
            pass
    with (
        pytest.raises(InputError, match="at least one id for a new run"),
        capture(pipe, tmp_path / "new.zarr"),
    ):
        pass
    with pytest.raises(UnknownName, match="adapter"):
        capture(pipe, path, adapter="difusers-unet")
    with pytest.raises(CaptureError, match="adapter for object.*exactly one.*got none"):
        capture(object(), path)
    with (
        pytest.raises(UnknownName, match="role"),
        capture(pipe, path, ["a"], roles=("negative",)) as cap,
        cap.sample("a"),
    ):
        generate(pipe)


def test_a_model_without_reference_attention_is_refused_before_anything_runs(tmp_path):
    from diffusers import UNet2DModel

    pipe = models.painter()
    pipe.unet = UNet2DModel(
        block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    with pytest.raises(CaptureError, match=r"no layer to capture.*attn2.*UNet2DModel"):
        capture(pipe, tmp_path / "run.zarr", ["a"])
    fused = models.painter()
    fused.unet.mid_block.attentions[0].transformer_blocks[0].attn2.fused_projections = True
    with pytest.raises(CaptureError, match="fused projections.*unfuse_qkv"):
        capture(fused, tmp_path / "run.zarr", ["a"])
    assert not (tmp_path / "run.zarr").exists()


def test_a_layer_that_is_not_called_is_an_error(tmp_path, monkeypatch):
    pipe = models.painter()
    block = pipe.unet.mid_block.attentions[0]
    monkeypatch.setattr(block, "forward", lambda x, **kwargs: (x,))
    with (
        pytest.raises(CaptureError, match=r"layers that the denoiser called.*expected 4.*mid_block"),
        capture(pipe, tmp_path / "run.zarr", ["a"]) as cap,
        cap.sample("a"),
    ):
        generate(pipe)
