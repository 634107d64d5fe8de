"""What changes during a generation is stored as it was, or refused in one line with a remedy that works."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

from i2am.pipeline.capture import capture
from i2am.storage.errors import CaptureError, InputError
from i2am.storage.reading.open import open_run
from tests.pipeline import joint_models, models, unet_models
from tests.pipeline.kernel_spy import kernel_witness
from tests.pipeline.test_joint import edit
from tests.pipeline.test_stable_diffusion import ATTN2, logits_of
from tests.pipeline.unet_models import TEXT, WIDTH

STEPS = 4
MID = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"


def generate(pipe, change=None, count=1, **more):
    """Paint with guidance; ``change`` gets the pipeline, the step and its tensors after each step."""
    generator = torch.Generator().manual_seed(1)
    shapes, tensors = {"prompt_embeds": (count, TEXT, WIDTH)}, ["prompt_embeds"]
    if "XL" in type(pipe).__name__:
        shapes["pooled_prompt_embeds"] = (count, WIDTH)
        tensors += ["add_text_embeds", "add_time_ids"]
    given = {
        f"{side}{name}": torch.randn(*shape, generator=generator)
        for name, shape in shapes.items()
        for side in ("", "negative_")
    }

    def after_step(pipe, step, timestep, values):
        return values if change is None else change(pipe, step, values)

    options = {"guidance_scale": 5.0, "num_inference_steps": STEPS, "height": 32, "width": 32}
    return pipe(
        **given | options | more,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        callback_on_step_end=after_step,
        callback_on_step_end_tensor_inputs=tensors,
    ).images


def record(pipe, path, change=None, count=1, generate=generate, more=None, **options):
    ids = [f"s{i}" for i in range(count)]
    with capture(pipe, path, samples=ids, **options) as cap, cap.samples(ids) as handles:
        generate(pipe, change, count, **(more or {}))
        for handle in handles:
            handle.generated = models.picture(0)
    return open_run(path)


def end_guidance(after):
    """As diffusers documents it: no guidance from now on, and the other half of the embeddings is dropped."""

    def change(pipe, step, values):
        if step != after:
            return values
        pipe._guidance_scale = 0.0
        return {name: value.chunk(2)[-1] for name, value in values.items()}

    return change


def new_prompt(after, tokens=TEXT):
    def change(pipe, step, values):
        if step == after:
            values["prompt_embeds"] = torch.cos(3 * values["prompt_embeds"])[:, :tokens]
        return values

    return change


def interrupt(after):
    def change(pipe, step, values):
        pipe._interrupt = step == after
        return values

    return change


def check_scores(run, pipe, monkeypatch, change, count=1, steps=STEPS, **more):
    """Every stored score is what reached the model's own kernel, at that step, in the last rows."""
    with kernel_witness(pipe.unet, ATTN2, monkeypatch) as seen:
        generate(pipe, change, count, **more)
    for name, forwards in seen.items():
        own = logits_of({name: forwards[:steps]}, name, 0, slice(-count, None), steps)
        np.testing.assert_allclose(run.scores(f"unet.{name}"), own, rtol=1e-5, atol=1e-5 * np.abs(own).max())
    for sample in run.samples:
        assert all(found["unwitnessed_steps"] == 0 for found in run.record(sample)["witness"].values())


# ---------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize(("count", "after"), [(1, 1), (2, 0)])
@pytest.mark.parametrize("make", [unet_models.stable_diffusion, unet_models.sdxl])
def test_guidance_that_ends_midway_is_followed(tmp_path, monkeypatch, make, count, after):
    pipe, change = make(), end_guidance(after)
    run = record(pipe, tmp_path / "r.zarr", change, count)
    check_scores(run, pipe, monkeypatch, change, count)
    assert run.record("s0")["annotations"]["guided_steps"] == list(range(after + 1))


def test_a_role_that_ends_midway_is_refused_and_its_remedies_work(tmp_path):
    pipe, roles = unet_models.stable_diffusion(), ("cond", "uncond")
    with pytest.raises(CaptureError, match=r"role 'uncond'.*none at step 2, 3.*roles=.*steps="):
        record(pipe, tmp_path / "r.zarr", end_guidance(1), roles=roles)
    run = record(pipe, tmp_path / "steps.zarr", end_guidance(1), roles=roles, steps=slice(2))
    assert len(run.timesteps) == 2
    assert len(record(pipe, tmp_path / "roles.zarr", end_guidance(1)).timesteps) == STEPS


@pytest.mark.parametrize(
    ("dtype", "ulps", "same"),
    [
        (torch.float32, 1, True),
        (torch.float32, 1000, False),
        (torch.bfloat16, 1, True),
        (torch.bfloat16, 8, False),
    ],
)
def test_a_static_key_that_another_batch_size_rounds_otherwise(tmp_path, dtype, ulps, same):
    """One unit in the last place is the same key, more are another one."""
    pipe = unet_models.stable_diffusion().to(dtype)

    def half(pipe, change, count):
        embeds = torch.randn(1, TEXT, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
        generate(pipe, change, prompt_embeds=embeds, negative_prompt_embeds=-embeds)

    def rounded(module, args, output):
        return output if len(output) > 1 else output * (1 + ulps * torch.finfo(output.dtype).eps)

    hooks = [
        module.register_forward_hook(rounded)
        for name, module in pipe.unet.named_modules()
        if name.endswith("attn2.to_k")
    ]
    options = {"representation": "factors", "generate": half}
    if same:
        run = record(pipe, tmp_path / "r.zarr", end_guidance(1), **options)
        largest = [found["largest_difference"] for found in run.record("s0")["witness"].values()]
        assert 0 < max(largest) < 4 * torch.finfo(dtype).eps
    else:
        with pytest.raises(InputError, match="the key changes over time"):
            record(pipe, tmp_path / "r.zarr", end_guidance(1), **options)
    for hook in hooks:
        hook.remove()


def test_guidance_that_is_rescaled_changes_nothing_of_what_is_stored(tmp_path, monkeypatch):
    pipe, more = unet_models.stable_diffusion(), {"guidance_rescale": 0.7}
    run = record(pipe, tmp_path / "r.zarr", more=more)
    check_scores(run, pipe, monkeypatch, None, **more)
    assert "guided_steps" not in run.record("s0")["annotations"]


# ----------------------------------------------------------------------------------- prompts


def test_a_prompt_that_changes_midway_is_stored_as_scores(tmp_path, monkeypatch):
    pipe, change = unet_models.stable_diffusion(), new_prompt(1)
    with pytest.raises(InputError, match=r'the key changes over time.*representation="scores"'):
        record(pipe, tmp_path / "r.zarr", change)
    run = record(pipe, tmp_path / "scores.zarr", change, representation="scores")
    check_scores(run, pipe, monkeypatch, change)
    assert not any(spec.static_key for spec in run.layers.values())


def test_a_prompt_of_another_length_is_refused_and_its_remedy_works(tmp_path):
    pipe, change = unet_models.stable_diffusion(), new_prompt(1, tokens=7)
    with pytest.raises(CaptureError, match=rf"step 2.*ref_prefix {TEXT}; got 7.*steps=slice\(2\)"):
        record(pipe, tmp_path / "r.zarr", change, representation="scores")
    run = record(pipe, tmp_path / "steps.zarr", change, steps=slice(2))
    assert len(run.timesteps) == 2


def test_latents_of_another_size_are_refused(tmp_path):
    def smaller(pipe, step, values):
        if step == 1:
            values["latents"] = torch.zeros(1, 4, 8, 8)
        return values

    with pytest.raises(CaptureError, match=r"step 2.*gen_grid \(8, 8\); got \(4, 4\).*steps=slice\(2\)"):
        record(unet_models.stable_diffusion(), tmp_path / "r.zarr", smaller, layers=MID)


# --------------------------------------------------------------------- fewer steps than announced


def test_an_interrupt_keeps_the_steps_that_ran_where_no_others_were_asked_for(tmp_path, monkeypatch):
    pipe, change = unet_models.stable_diffusion(), interrupt(1)
    with pytest.raises(CaptureError, match=r"expected 4 steps; got 2 before an interrupt.*steps=slice\(2\)"):
        record(pipe, tmp_path / "r.zarr", change)
    run = record(pipe, tmp_path / "kept.zarr", change, steps=slice(2))
    check_scores(run, pipe, monkeypatch, change, steps=2)
    assert run.record("s0")["annotations"]["interrupted"] == {"steps": 2, "of": STEPS}


def test_an_interrupt_of_joint_models_with_two_calls_a_step(tmp_path):
    def stop(pipe, change=None, count=1):
        return edit(
            pipe, count, callback_on_step_end=lambda pipe, *_: setattr(pipe, "_interrupt", True) or {}
        )

    pipe = joint_models.flux_kontext()
    with pytest.raises(CaptureError, match=r"expected 3 steps; got 1 before an interrupt.*steps=slice\(1\)"):
        record(pipe, tmp_path / "r.zarr", generate=stop)
    run = record(pipe, tmp_path / "kept.zarr", generate=stop, steps=0, roles=("cond", "uncond"))
    assert run.record("s0")["annotations"]["interrupted"] == {"steps": 1, "of": 3}


def test_an_interrupt_after_the_last_step_is_none(tmp_path):
    run = record(unet_models.stable_diffusion(), tmp_path / "r.zarr", interrupt(STEPS - 1))
    assert "interrupted" not in run.record("s0")["annotations"]


def test_fewer_calls_without_an_interrupt_stay_refused(tmp_path):
    pipe = unet_models.stable_diffusion()
    with pytest.raises(CaptureError, match=r"expected 6 steps; got 4; run the whole pipeline call"):
        record(pipe, tmp_path / "r.zarr", timesteps=[751, 501, 251, 1, 1, 1], steps=slice(2))


@pytest.mark.parametrize("fraction", [0.3, 0.5])
def test_a_mixture_of_denoisers_ends_where_the_pipeline_says(tmp_path, monkeypatch, fraction):
    pipe, more = unet_models.sdxl(), {"denoising_end": fraction}
    run = record(pipe, tmp_path / "r.zarr", more=more)
    steps = len(run.timesteps)
    assert list(run.timesteps) == [t for t in (751.0, 501.0, 251.0, 1.0) if t >= 1000 * (1 - fraction)]
    check_scores(run, pipe, monkeypatch, None, steps=steps, **more)


@pytest.mark.parametrize("strength", [0.01, 0.26, 1.0])
def test_image_to_image_of_any_strength(tmp_path, strength):
    pipe = unet_models.stable_diffusion(StableDiffusionImg2ImgPipeline)

    def from_image(pipe, change=None, count=1):
        embeds = torch.ones(1, TEXT, WIDTH)
        return pipe(
            prompt_embeds=embeds, negative_prompt_embeds=-embeds, image=models.picture(0, 32, 32),
            strength=strength, num_inference_steps=STEPS, output_type="latent",
        ).images  # fmt: skip

    if strength * STEPS < 1:  # the pipeline gives its input back
        with pytest.raises(CaptureError, match=r"expected at least 1 step; got 0;.*strength of at least one"):
            record(pipe, tmp_path / "r.zarr", generate=from_image, adapter="diffusers-text")
    else:
        run = record(pipe, tmp_path / "r.zarr", generate=from_image, adapter="diffusers-text")
        assert len(run.timesteps) == int(strength * STEPS)
