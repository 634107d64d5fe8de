"""Every scheduler of diffusers that a pipeline takes: each step that ran is stored at its own timestep."""

from __future__ import annotations

import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    FluxKontextInpaintPipeline,
    HeunDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)

from i2am.pipeline.capture import capture
from i2am.storage.reading.open import open_run
from tests.pipeline import joint_models, models, unet_models
from tests.pipeline.test_joint import edit, embeddings, small_references  # noqa: F401 - a fixture
from tests.pipeline.unet_models import TEXT, WIDTH

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "steps_offset": 1,
    "trained_betas": None,
}
"""The scheduler's configuration of Stable Diffusion 1.5."""
TASKS = {
    "text": StableDiffusionPipeline,
    "image": StableDiffusionImg2ImgPipeline,
    "inpaint": StableDiffusionInpaintPipeline,
}
SPACINGS = ({"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing", "use_karras_sigmas": True})
CLASSES = {
    name: kind
    for name in dir(diffusers.schedulers)
    if inspect.isclass(kind := getattr(diffusers.schedulers, name))
    and issubclass(kind, SchedulerMixin)
    and kind is not SchedulerMixin
}

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")


def paint(pipe, strength=0.6, **more):
    """Four steps of one of `TASKS`: of the image tasks, the last two."""
    generator = torch.Generator().manual_seed(1)
    arguments = {
        "prompt_embeds": torch.randn(1, TEXT, WIDTH, generator=generator),
        "negative_prompt_embeds": torch.randn(1, TEXT, WIDTH, generator=generator),
        "guidance_scale": 5.0,
        "num_inference_steps": 4,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }
    if not isinstance(pipe, StableDiffusionImg2ImgPipeline):
        arguments |= {"height": 32, "width": 32}
    if not isinstance(pipe, StableDiffusionPipeline):
        arguments |= {"image": models.picture(0, 32, 32), "strength": strength}
    if isinstance(pipe, StableDiffusionInpaintPipeline):
        arguments["mask_image"] = models.hole(32, 32)
    return pipe(**arguments | more)


def captured(pipe, path, denoiser, call):
    """The run's timesteps and those that the denoiser was called with; None if the pipeline itself fails."""
    seen: list[float] = []

    def spy(module, args, kwargs):
        given = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        seen.append(float(torch.as_tensor(given).flatten()[0]))

    hook = denoiser.register_forward_pre_hook(spy, with_kwargs=True)
    failed: list[Exception] = []
    try:
        words = "diffusers-text" if hasattr(pipe, "unet") else None
        with (
            capture(pipe, path, samples=["a"], layers=0, adapter=words) as cap,
            cap.sample("a") as sample,
        ):
            try:
                call(pipe)
            except Exception as error:
                failed.append(error)
                raise
            sample.generated = models.picture(0)
    except Exception as error:
        if error not in failed:
            raise
        with pytest.raises(type(error)):  # not of capture's making
            call(pipe)
        return None
    finally:
        hook.remove()
    run = open_run(path)
    for agreement in run.record("a")["witness"].values():
        assert (agreement["steps"], agreement["unwitnessed_steps"]) == (len(run.timesteps), 0)
        assert agreement["largest_difference"] < 1e-5
    return list(run.timesteps), seen


def follow_every_scheduler(tmp_path, task, **options):
    """Names of the schedulers with which the pipeline runs; all of them are captured."""
    pipe, taken = unet_models.stable_diffusion(TASKS[task]), []
    for name, kind in CLASSES.items():
        try:
            pipe.scheduler = kind.from_config({**STABLE_DIFFUSION, **options})
        except (TypeError, ValueError):  # it needs what Stable Diffusion has not
            continue
        if (found := captured(pipe, tmp_path / f"{name}.zarr", pipe.unet, paint)) is not None:
            stored, seen = found
            assert stored == seen, name
            taken.append(name)
    return taken


def check_taken(taken):
    """The schedulers that are told to fit Stable Diffusion do, unless a library of theirs is missing."""
    fitting = {kind.__name__ for kind in PNDMScheduler().compatibles} & CLASSES.keys()
    assert fitting <= set(taken)
    assert len(taken) >= 20


def test_every_scheduler_from_an_image(tmp_path):
    check_taken(follow_every_scheduler(tmp_path, "image"))


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("options", [{}, {"skip_prk_steps": False}, *SPACINGS], ids=str)
def test_every_scheduler_in_every_task(tmp_path, task, options):
    check_taken(follow_every_scheduler(tmp_path, task, **options))


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("kind", [PNDMScheduler, HeunDiscreteScheduler])
def test_every_strength_with_timesteps_that_stand_twice(tmp_path, kind, strength):
    pipe = unet_models.stable_diffusion(TASKS["inpaint"], kind.from_config(STABLE_DIFFUSION))
    stored, seen = captured(pipe, tmp_path / "r.zarr", pipe.unet, lambda pipe: paint(pipe, strength))
    assert stored == seen
    assert (len(stored) == len(pipe.scheduler.timesteps)) == (strength == 1.0)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("EulerDiscreteScheduler", {"sigmas": [9.0, 2.0, 0.5, 0.0]}),
        ("DPMSolverMultistepScheduler", {"timesteps": [900, 500, 499, 20]}),
        ("LCMScheduler", {"timesteps": [939, 699, 59]}),
    ],
)
@pytest.mark.parametrize("task", ["text", "inpaint"])
def test_timesteps_and_sigmas_of_the_users_own(tmp_path, name, given, task):
    pipe = unet_models.stable_diffusion(TASKS[task], CLASSES[name].from_config(STABLE_DIFFUSION))
    if task == "inpaint":  # which takes neither: the scheduler is set by hand
        own, (kind, values) = pipe.scheduler, *given.items()
        pipe.scheduler.set_timesteps = lambda *_, **more: type(own).set_timesteps(own, **{kind: values})
        given = {}
    found = captured(pipe, tmp_path / "r.zarr", pipe.unet, lambda pipe: paint(pipe, strength=1.0, **given))
    assert found is not None
    assert found[0] == found[1]


@pytest.mark.usefixtures("small_references")
@pytest.mark.parametrize(
    ("make", "guidance"),
    [
        (joint_models.flux_kontext, 2.0),
        pytest.param(joint_models.qwen_edit, 1.0, marks=pytest.mark.slow),
        pytest.param(joint_models.flux_kontext, 1.0, marks=pytest.mark.slow),
        pytest.param(joint_models.qwen_edit, 2.0, marks=pytest.mark.slow),
    ],
)
def test_every_scheduler_of_joint_models(tmp_path, make, guidance):
    """Where guidance is on, each step makes two calls; second-order schedulers repeat timesteps besides."""
    pipe, taken = make(), []
    for name, kind in CLASSES.items():
        for options in ({}, {"use_dynamic_shifting": True}, {"use_flow_sigmas": True}):
            if not options.keys() <= inspect.signature(kind).parameters.keys():
                continue
            try:
                pipe.scheduler = kind.from_config({"prediction_type": "flow_prediction", **options})
            except (TypeError, ValueError):
                continue
            path = tmp_path / f"{name}-{'-'.join(options)}.zarr"
            found = captured(pipe, path, pipe.transformer, lambda pipe: edit(pipe, guidance=guidance))
            if found is not None:
                each = 2 if guidance > 1 else 1
                np.testing.assert_allclose(np.repeat(found[0], each), np.array(found[1]) * 1000, rtol=1e-5)
                taken.append(name)
    assert {"FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "UniPCMultistepScheduler"} <= {*taken}


@pytest.mark.parametrize("strength", [0.34, 1.0])
def test_a_joint_model_with_a_strength(tmp_path, strength):
    pipe = FluxKontextInpaintPipeline(**joint_models.flux_kontext().components)

    def inpaint(pipe):
        pipe(
            **embeddings(1, 1), image=models.picture(5, 16, 16), mask_image=models.hole(16, 16), height=16,
            width=16, max_area=256, _auto_resize=False, strength=strength, num_inference_steps=6,
            output_type="latent",
        )  # fmt: skip

    found = captured(pipe, tmp_path / "r.zarr", pipe.transformer, inpaint)
    assert found is not None
    np.testing.assert_allclose(found[0], np.array(found[1]) * 1000, rtol=1e-5)
    assert (len(found[0]) == 6) == (strength == 1.0)
