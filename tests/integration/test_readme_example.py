"""The README composes: the pipeline that it captures has an answer to each question that follows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline

import i2am
from tests.pipeline import models, unet_models
from tests.pipeline.unet_models import TEXT, WIDTH

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_each_question_has_an_answer(tmp_path):
    pipe = unet_models.with_ip_adapters(unet_models.stable_diffusion(StableDiffusionInpaintPipeline), "full")
    run = tmp_path / "study.zarr"
    with i2am.capture(pipe, run, samples=["a"]) as cap:
        source, reference, mask = models.picture(1, 64, 64), models.picture(2, 64, 64), models.hole(64, 64)
        with cap.sample("a", source=source, reference=reference, mask=mask) as s:
            s.generated = pipe(
                prompt_embeds=torch.zeros(1, TEXT, WIDTH), image=source, mask_image=mask, guidance_scale=1.0,
                ip_adapter_image_embeds=unet_models.image_embeds(("full",), False), num_inference_steps=2,
                strength=1.0, height=64, width=64,
            ).images[0]  # fmt: skip
    run = i2am.open_run(run)
    maps = i2am.attribution_maps(run, direction="g2r", level="head")
    assert np.isfinite(maps.sel(sample="a").mean("head")).all()
    r2g = i2am.attribution_maps(run, direction="r2g", level="unified")
    assert np.isfinite(i2am.imacs(r2g, [run.image("mask", "a")[..., 0] > 127])).all()
    scope: dict[str, object] = {}
    exec(re.search(r"# mymodule.py\n(.*?)```", README, re.DOTALL)[1], scope)
    assert (i2am.aggregate(run, scope["my_entropy"]).to_numpy() > 0).all()


def test_the_pipeline_is_the_one_that_is_tested():
    block = README.partition("## Capture your own pipeline")[2].partition("```\n")[0]
    assert "StableDiffusionInpaintPipeline" in block
    assert "ip-adapter-full-face" in block
    for argument in ("image=", "mask_image=", "ip_adapter_image="):
        assert argument in block
