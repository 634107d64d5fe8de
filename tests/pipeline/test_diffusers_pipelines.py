"""Capture on diffusers' own pipelines: one pooled reference token, PNDM's extra call, several images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from i2am.pipeline.capture import capture
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.pipeline import models
from tests.pipeline.spy import attention_witness


def paint(pipe, count, guidance):
    return pipe(
        image=[models.picture(i, 32, 32) for i in range(count)],
        mask_image=[models.hole(32, 32) for _ in range(count)],
        example_image=[models.picture(5 + i, 32, 32) for i in range(count)],
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(i) for i in range(count)],
        output_type="np",
    ).images


def vary(pipe, count, guidance):
    return pipe(
        image=models.picture(3, 32, 32),
        height=32,
        width=24,
        num_inference_steps=3,
        guidance_scale=guidance,
        num_images_per_prompt=count,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images


@pytest.mark.parametrize(("count", "guidance"), [(1, 5.0), (3, 1.0), (3, 5.0)])
@pytest.mark.parametrize(
    ("make", "call", "grid"),
    [(models.paint_by_example, paint, (16, 16)), (models.image_variation, vary, (16, 12))],
)
def test_pooled_token_pipelines(tmp_path, make, call, grid, count, guidance):
    pipe = make()
    plain = call(pipe, count, guidance)
    ids = [f"s{i}" for i in range(count)]
    with capture(pipe, tmp_path / "run.zarr", samples=ids) as cap, cap.samples(ids) as handles:
        captured = call(pipe, count, guidance)
        for handle, image in zip(handles, captured, strict=True):
            handle.generated = image
    np.testing.assert_array_equal(captured, plain)

    with attention_witness(pipe.unet) as seen:
        call(pipe, count, guidance)
    run = open_run(tmp_path / "run.zarr")
    calls = len(pipe.scheduler.timesteps)
    assert calls == 4  # three steps, and the extra one of the multistep scheduler
    assert list(run.timesteps) == [float(t) for t in pipe.scheduler.timesteps]
    assert set(run.layers) == set(seen)
    rows = count * (2 if guidance > 1 else 1)
    for name, spec in run.layers.items():
        down = 2 if "mid_block" in name or "blocks.1" in name or "up_blocks.0" in name else 1
        assert spec.gen_grid == (grid[0] // down, grid[1] // down)
        assert (spec.ref_grid, spec.ref_prefix, spec.representation) == ((0, 0), 1, "scores")
        logits = np.stack([c[0].unflatten(0, (rows, 8))[-count:].numpy() for c in seen[name]], axis=1)
        np.testing.assert_allclose(run.scores(name), logits, rtol=1e-5, atol=1e-5 * np.abs(logits).max())
    assert verify(tmp_path / "run.zarr").ok
