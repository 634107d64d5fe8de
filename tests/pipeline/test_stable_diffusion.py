"""Text cross-attention and IP-Adapters on diffusers' own Stable Diffusion pipelines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor

from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.capture import capture
from i2am.storage.errors import CaptureError
from i2am.storage.reading.open import open_run
from i2am.storage.reading.witness import summarise_witness
from i2am.storage.tools.verify import verify
from tests.pipeline import models, unet_models
from tests.pipeline.kernel_spy import kernel_witness
from tests.pipeline.unet_models import TEXT, WIDTH

ATTN2 = r".*attn2"


def generate(pipe, kinds=(), count=1, guidance=5.0, height=64, width=48, steps=3, patches=4):
    generator = torch.Generator().manual_seed(1)

    def prompts(*shape):
        return torch.randn(count, *shape, WIDTH, generator=generator)

    arguments = {"prompt_embeds": prompts(TEXT)}
    if guidance > 1:
        arguments["negative_prompt_embeds"] = prompts(TEXT)
    if "XL" in type(pipe).__name__:
        arguments["pooled_prompt_embeds"] = prompts()
        if guidance > 1:
            arguments["negative_pooled_prompt_embeds"] = prompts()
    if kinds:
        embeds = unet_models.image_embeds(kinds, guidance > 1, patches)
        arguments["ip_adapter_image_embeds"] = embeds
    if isinstance(pipe, StableDiffusionInstructPix2PixPipeline):
        arguments["image"] = [models.picture(i, height, width) for i in range(count)]
    else:
        arguments |= {"height": height, "width": width}
    return pipe(
        **arguments,
        guidance_scale=guidance,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images


def record(pipe, path, kinds=(), count=1, options=None, **images):
    ids = [f"s{i}" for i in range(count)]
    with capture(pipe, path, samples=ids, **(options or {})) as cap, cap.samples(ids) as handles:
        out = generate(pipe, kinds, count, **images)
        for handle, image in zip(handles, out, strict=True):
            handle.generated = image
    return out


def logits_of(seen, name, number, rows, steps):
    """The ``number``-th kernel call of a layer in every step, for some rows: [row, step, head, gen, ref]."""
    forwards = seen[name]
    assert len(forwards) == steps
    return np.stack([forward[number].logits[rows].numpy() for forward in forwards], axis=1)


@pytest.mark.parametrize(("count", "guidance"), [(1, 1.0), (1, 5.0), (3, 5.0)])
@pytest.mark.parametrize("make", [unet_models.stable_diffusion, unet_models.sdxl])
@pytest.mark.parametrize("kinds", [(), ("base",), ("full", "plus")])
def test_images_are_equal_and_scores_are_the_models_own(tmp_path, monkeypatch, make, kinds, count, guidance):
    pipe = make()
    if kinds:
        unet_models.with_ip_adapters(pipe, *kinds)
    images = {"count": count, "guidance": guidance}
    plain = generate(pipe, kinds, **images)
    np.testing.assert_array_equal(record(pipe, tmp_path / "r.zarr", kinds, **images), plain)
    with kernel_witness(pipe.unet, ATTN2, monkeypatch) as seen:
        np.testing.assert_array_equal(generate(pipe, kinds, **images), plain)

    run = open_run(tmp_path / "r.zarr")
    assert run.attrs["adapter"] == ("ip-adapter" if kinds else "diffusers-text")
    assert run.attrs["guidance"] == {"calls": [["uncond", "cond"] if guidance > 1 else ["cond"]]}
    assert len(run.layers) == len(seen) * max(1, len(kinds))
    tokens = {"": ((0, 0), TEXT), "base": ((0, 0), 4), "plus": ((0, 0), 6), "full": ((2, 2), 1)}
    for name in seen:
        for number, kind in enumerate(kinds or ("",)):
            layer = f"unet.{name}.processor.to_k_ip.{number}" if kind else f"unet.{name}"
            spec = run.layers[layer]
            assert spec.gen_grid == (16, 12)
            assert (spec.ref_grid, spec.ref_prefix) == tokens[kind]
            assert spec.static_key
            own = logits_of(seen, name, number + bool(kind), slice(-count, None), 3)
            np.testing.assert_allclose(run.scores(layer), own, rtol=1e-5, atol=1e-5 * np.abs(own).max())
    assert verify(tmp_path / "r.zarr").ok


@pytest.mark.parametrize("count", [1, 2])
def test_three_chunks_of_instruct_pix2pix(tmp_path, monkeypatch, count):
    pipe = unet_models.stable_diffusion(StableDiffusionInstructPix2PixPipeline)
    roles = ("cond", "image", "uncond")
    record(pipe, tmp_path / "r.zarr", count=count, options={"roles": roles, "adapter": "diffusers-text"})
    with kernel_witness(pipe.unet, ATTN2, monkeypatch) as seen:
        generate(pipe, count=count)
    run = open_run(tmp_path / "r.zarr")
    assert run.attrs["guidance"] == {"calls": [list(roles)]}
    for name in seen:
        for index, role in enumerate(roles):
            layer = f"unet.{name}" + ("" if role == "cond" else f"@{role}")
            own = logits_of(seen, name, 0, slice(index * count, (index + 1) * count), 3)
            np.testing.assert_allclose(run.scores(layer), own, rtol=1e-5, atol=1e-5 * np.abs(own).max())


def test_frames_of_a_video_are_samples(tmp_path):
    pipe = unet_models.with_ip_adapters(unet_models.animate_diff(), "base")
    frames, text = [f"f{i}" for i in range(4)], torch.ones(1, TEXT, WIDTH)

    def call():
        return pipe(
            prompt_embeds=text, negative_prompt_embeds=-text, num_frames=4, height=32, width=24,
            ip_adapter_image_embeds=unet_models.image_embeds(("base",), guidance=True),
            guidance_scale=2.0, num_inference_steps=2, output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).frames[0]  # fmt: skip

    plain = call()
    with capture(pipe, tmp_path / "r.zarr", samples=frames) as cap, cap.samples(frames) as handles:
        captured = call()
        for handle, frame in zip(handles, captured, strict=True):
            handle.generated = frame
    np.testing.assert_array_equal(captured, plain)
    run = open_run(tmp_path / "r.zarr")
    assert run.attrs["guidance"] == {"calls": [["uncond", "cond"]]}
    assert {(spec.gen_grid, spec.ref_prefix) for spec in run.layers.values()} == {((8, 6), 4)}
    witness = summarise_witness(run, run.samples)
    assert not witness.unwitnessed
    assert witness.largest_difference < 1e-5
    with (
        pytest.raises(CaptureError, match=r"got 8; declare every image of the call"),
        capture(pipe, tmp_path / "one.zarr", samples=["v"]) as cap,
        cap.sample("v"),
    ):
        call()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_a_second_order_scheduler_has_a_step_for_every_call(tmp_path, monkeypatch):
    pipe = unet_models.stable_diffusion(scheduler=unet_models.heun())
    record(pipe, tmp_path / "r.zarr")
    run = open_run(tmp_path / "r.zarr")
    assert list(run.timesteps) == [float(t) for t in pipe.scheduler.timesteps]
    assert len(run.timesteps) == 5  # three steps, all but the last of two calls
    with kernel_witness(pipe.unet, ATTN2, monkeypatch) as seen:
        generate(pipe)
    for name in seen:
        own = logits_of(seen, name, 0, slice(-1, None), 5)
        np.testing.assert_allclose(run.scores(f"unet.{name}"), own, rtol=1e-5, atol=1e-5 * np.abs(own).max())


def test_adapters_of_scale_zero_are_left_out(tmp_path):
    pipe = unet_models.with_ip_adapters(unet_models.stable_diffusion(), "base", "plus")
    pipe.set_ip_adapter_scale([0.0, 0.5])
    record(pipe, tmp_path / "r.zarr", ("base", "plus"))
    assert all(name.endswith("to_k_ip.1") for name in open_run(tmp_path / "r.zarr").layers)
    pipe.set_ip_adapter_scale([{"mid": 0.5}, 0.0])  # one block alone, as style adapters do
    record(pipe, tmp_path / "mid.zarr", ("base", "plus"))
    assert [*open_run(tmp_path / "mid.zarr").layers] == [
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.0"
    ]
    pipe.set_ip_adapter_scale([0.0, 0.0])
    with pytest.raises(CaptureError, match=r"scale 0.*set_ip_adapter_scale"):
        capture(pipe, tmp_path / "none.zarr", samples=["a"])


def test_an_adapter_switched_off_on_the_way_is_said(tmp_path):
    """Its calls stop, so there is nothing to record; the steps before can be chosen."""
    pipe = unet_models.with_ip_adapters(unet_models.stable_diffusion(), "base")

    def off(pipe, step, timestep, values):
        pipe.set_ip_adapter_scale(0.0)
        return values

    def call():
        embeds = unet_models.image_embeds(("base",), True)
        text = torch.ones(1, TEXT, WIDTH)
        return pipe(
            prompt_embeds=text, negative_prompt_embeds=-text, ip_adapter_image_embeds=embeds, height=32,
            width=32, num_inference_steps=3, callback_on_step_end=off, output_type="np",
        ).images[0]  # fmt: skip

    with (
        capture(pipe, tmp_path / "r.zarr", samples=["a"]) as cap,
        pytest.raises(CaptureError, match=r"step 1: layers that the denoiser called.*steps="),
        cap.sample("a"),
    ):
        call()
    pipe.set_ip_adapter_scale(1.0)
    with capture(pipe, tmp_path / "first.zarr", samples=["a"], steps=0) as cap, cap.sample("a") as sample:
        sample.generated = call()
    assert open_run(tmp_path / "first.zarr").samples == ("a",)


def test_every_kernel_gives_the_same_scores(tmp_path):
    runs = {}
    for processor in (AttnProcessor(), AttnProcessor2_0(), SlicedAttnProcessor(slice_size=2)):
        pipe = unet_models.stable_diffusion()
        pipe.unet.set_attn_processor(processor)
        path = tmp_path / f"{type(processor).__name__}.zarr"
        record(pipe, path)
        runs[path.name] = open_run(path)
    first, *others = runs.values()
    for name in first.layers:
        for other in others:
            np.testing.assert_allclose(other.scores(name), first.scores(name), rtol=1e-4, atol=1e-4)


def test_layers_are_chosen_by_number_and_range(tmp_path):
    pipe = unet_models.stable_diffusion()
    names = [site.name for site in find_adapter(pipe).sites(pipe)]
    middle = next(name for name in names if "mid_block" in name)
    for wanted, expected in (
        (0, [0]),
        (slice(1, 3), [1, 2]),
        ([0, "*mid_block*"], [0, names.index(middle)]),
        (range(2), [0, 1]),
    ):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
        record(pipe, path, options={"layers": wanted})
        assert set(open_run(path).layers) == {names[i] for i in expected}


def test_a_model_that_no_adapter_knows_is_said_before_anything_runs(tmp_path):
    pipe = unet_models.stable_diffusion()
    pipe.text_encoder = None
    with pytest.raises(
        CaptureError, match=r"adapter for StableDiffusionPipeline.*takes no image.*load_ip_adapter"
    ):
        capture(pipe, tmp_path / "r.zarr", samples=["a"])
    with pytest.raises(CaptureError, match=r"'pasd': no layer.*pixel_attentions.*UNet2DConditionModel with"):
        capture(pipe, tmp_path / "r.zarr", samples=["a"], adapter="pasd")
    assert type(pipe) is StableDiffusionPipeline
    assert not (tmp_path / "r.zarr").exists()
